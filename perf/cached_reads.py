"""Cached reads on a schedule, alternately of products and own accounts, on a complete stack.

    python -m perf.cached_reads [--rate 500] [--seconds 20] [--products 10000] [--users 500] [--save] [--json] [--gate]

Read i is due i / rate seconds after the start, whether or not earlier answers came, and its latency counts from then.
Products are drawn by Zipf's law, so some are in the cache of the process, some in Redis, some in neither. Every read
must succeed.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg

from devstack.demo.rehearsal import own_stack
from devstack.state import StateFolder
from domain import ids
from domain.topology import Topology, bucket_of_user
from ops.stack_file import Stack
from perf import shop
from perf.by_clock import Request, percentiles, run
from perf.processes import cpu_us, tree
from perf.results import Figure, Target, add_options, conclude, progress
from runtime.tokens.keys import load_token_keys, mint_buyer_token

WARM_UP_S = 5.0
P95_MS_MAX = 50.0
LATENESS_P95_MS_MAX = 5.0  # of the sending; above it the schedule was not kept
CLIENTS = 32  # connections; more concurrent reads wait, and their waiting counts
DRAWN = 20_000  # distinct requests, used in turn
SEED = 1
TOKEN_S = 900
METHOD = (
    "Open loop of 32 keep-alive connections against the backoffice of a complete embedded stack: read i is due i / "
    "rate seconds after the start, latency from when it was due to its 200. Alternately a product by its id, drawn by "
    "Zipf 1.0 from all products, and the own account of a user, each with a token that is verified. Warmed up at the "
    "same rate. Client and servers share the machine."
)
_INSERT = """
INSERT INTO users (id, bucket, email, email_folded, name, password_hash, role)
VALUES (%s, %s, %s, %s, 'Perf', 'none', 'buyer')
"""


def main() -> int:
    options = _options()
    with progress() as say, own_stack(say, name="perf") as (stack, folder):
        say(f"{options.products:,} products, {options.users:,} accounts")
        reads = draw(products(stack, count=options.products), accounts(stack, folder, count=options.users))
        say("warming up")
        run(stack.backoffice_url, reads, rate=options.rate, seconds=min(WARM_UP_S, options.seconds), clients=CLIENTS)
        say(f"{options.rate:g} reads a second for {options.seconds:g} s")
        before = _cpu_us(stack)
        course = run(stack.backoffice_url, reads, rate=options.rate, seconds=options.seconds, clients=CLIENTS)
        spent_us = _cpu_us(stack) - before
    result: dict[str, Any] = {
        "reads": len(course.latency_ms),
        "backoffice_cpu_us_a_read": spent_us / len(course.latency_ms),
        "latency_ms": percentiles(course.latency_ms),
        "lateness_ms": percentiles(course.lateness_ms),
    }
    targets = [
        Target("p95 from when a read was due", result["latency_ms"]["p95"], "ms", most=P95_MS_MAX),
        Target("p95 of the client's lateness", result["lateness_ms"]["p95"], "ms", most=LATENESS_P95_MS_MAX),
    ]
    shown = ", ".join(f"{name} {value:.1f}" for name, value in result["latency_ms"].items())
    text = [
        f"{result['reads']} cached reads, latency ms from when due: {shown}",
        f"backoffice: {result['backoffice_cpu_us_a_read']:.0f} us of CPU time per read",
    ]
    return conclude(Figure("cached_reads", METHOD, targets, result), options, text)


def _cpu_us(stack: Stack) -> float:
    return cpu_us(tree(stack.processes["backoffice"]))


def products(stack: Stack, *, count: int, first: int = 1) -> list[UUID]:
    """Fill the catalogue with products numbered from `first` on. Returns the ids of all products that are on show."""
    with psycopg.connect(stack.catalogue_dsn, autocommit=True) as connection:
        shop.fill(connection, count, first=first)
        return [row[0] for row in connection.execute("SELECT id FROM products WHERE active ORDER BY id")]


def accounts(stack: Stack, folder: StateFolder, *, count: int) -> list[str]:
    """Insert accounts directly into their shards. Returns an access token for each."""
    topology, keys = Topology(), load_token_keys(folder.token_keys)
    rows: list[list[tuple[object, ...]]] = [[] for _ in stack.shard_dsns]
    tokens = []
    for _ in range(count):
        user_id = ids.new_uuid7()
        email = f"{user_id}@perf.example"
        rows[topology.shard_of_user(user_id)].append((user_id, bucket_of_user(user_id), email, email))
        tokens.append(mint_buyer_token(keys, user_id=user_id, issuer="flashsale", ttl_s=TOKEN_S))
    for dsn, of_shard in zip(stack.shard_dsns, rows, strict=True):
        with psycopg.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.executemany(_INSERT, of_shard)
    return tokens


def draw(products: Sequence[UUID], tokens: Sequence[str]) -> list[Request]:
    """Reads of products and accounts, alternately; the same ones in every run."""
    dice = random.Random(SEED)
    by_rank = dice.sample(products, len(products))
    drawn = dice.choices(by_rank, [1 / rank for rank in range(1, len(by_rank) + 1)], k=DRAWN // 2)
    reads = []
    for place, product in enumerate(drawn):
        reads.append(Request("GET", f"/v1/products/{product}", {}))
        token = tokens[place % len(tokens)]
        reads.append(Request("GET", "/v1/users/me", {"Authorization": f"Bearer {token}"}))
    return reads


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m perf.cached_reads", description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=float, default=500.0, help="reads due a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the schedule")
    parser.add_argument("--products", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=500)
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
