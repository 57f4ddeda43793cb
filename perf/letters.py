"""Letters under load: from the event of an order to its letter, while orders of strangers pass at a fixed rate.

    python -m perf.letters [--rate 1000] [--seconds 20] [--accounts 40] [--save] [--json] [--gate]

Orders of buyers without an account are placed at the rate, and their holds expire, so their events pass at twice the
rate. Meanwhile accounts order and cancel, two a second; each must get its letter. The cost of a buyer without an
account is measured apart, on the shards of the same stack.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psycopg

from devstack.demo.rehearsal import own_stack
from domain import ids
from domain.sales import STOCK_MAX
from ops.shop import Shop
from ops.stack_file import Stack
from perf.by_clock import percentiles
from perf.cached_reads import accounts
from perf.load import Aim, Load, write_tokens
from perf.processes import cpu_us, tree
from perf.results import Figure, Target, add_options, conclude, progress
from workers.announcer.recipients import SQL

USERS = 20_000
HOLD_S = 10
SKU = "LETTERS"
EVERY_S = 0.5
LETTER_S_MAX = 2.0
WAIT_S = 30.0
STRANGERS = 500  # in one query, as many as the announcer reads at most in a round
STRANGER_US_MAX = 30.0
ALONE_RATIO_LEAST = 3.0
ACCOUNTS_OF_SHARD = 50_000  # so that the query probes an index
_FILL = f"""
INSERT INTO users (id, bucket, email, email_folded, name, password_hash, role)
SELECT gen_random_uuid(), 0, n || '@many.example', n || '@many.example', 'Perf', 'none', 'buyer'
FROM generate_series(1, {ACCOUNTS_OF_SHARD}) AS n WHERE NOT EXISTS (SELECT FROM users WHERE email = '1@many.example');
ANALYZE users;
"""  # noqa: S608 - a constant
METHOD = (
    "Complete embedded stack. The bundled driver places orders of 20,000 buyers without an account at the rate, each with "
    "a hold of 10 s that expires. When holds expire at the same rate, accounts order and cancel, one each half second; "
    "latency from the answer to the cancellation to the file of the letter in the mailbox. Cost of a buyer without an "
    "account: the announcer's query for 500 of them against a shard with 50,000 accounts, server time by EXPLAIN "
    "ANALYZE, median of 50, and the same query with one id. Load generator and servers share the machine."
)


def main() -> int:
    options = _options()
    with progress() as say, own_stack(say, name="perf") as (stack, folder):
        say("publishing a sale")
        shop = Shop.log_in(stack.backoffice_url, **stack.admin)
        shop.create_product(sku=SKU, name="Perf", price_minor=1999)
        sale = shop.create_open_sale(
            name="Perf", stock={SKU: STOCK_MAX}, price_minor=1999, hold_s=HOLD_S, per_user_limit=10_000
        )
        tokens = accounts(stack, folder, count=options.accounts)
        strangers = folder.path / "tokens.tsv"
        write_tokens(strangers, folder.token_keys, users=USERS)
        aim = Aim(stack.order_url, [UUID(sale["id"])], [SKU], strangers)
        say(f"{options.rate:g} orders a second")
        with Load(aim, "letters", HOLD_S + 5.0 + options.seconds + WAIT_S, 64, options.rate) as load:
            time.sleep(HOLD_S + 5.0)
            before, began = cpu_us(tree(stack.processes["announcer-0"])), time.monotonic()
            late_s = cancellations(stack, sale["id"], tokens, seconds=options.seconds)
            spent_us, took_s = cpu_us(tree(stack.processes["announcer-0"])) - before, time.monotonic() - began
            accepted = load.finish()["accepted"]
        together_us, alone_us = query_us(stack, STRANGERS), query_us(stack, 1)
    events = 2 * options.rate * took_s
    result: dict[str, Any] = {
        "letters": len(late_s),
        "letter_s": percentiles(late_s),
        "slowest_letter_s": max(late_s),
        "orders_accepted": accepted,
        "announcer_cpu_us_an_event": spent_us / events,
        "postgres_us_a_stranger": together_us,
        "postgres_us_a_stranger_alone": alone_us,
    }
    targets = [
        Target("slowest letter after its event", result["slowest_letter_s"], "s", most=LETTER_S_MAX),
        Target("PostgreSQL per buyer without account", together_us, "us", most=STRANGER_US_MAX),
        Target("one query each, to one for 500", alone_us / together_us, "x", least=ALONE_RATIO_LEAST),
    ]
    shown = ", ".join(f"{name} {value:.2f}" for name, value in result["letter_s"].items())
    text = [
        f"{len(late_s)} letters, s after the cancellation: {shown}, slowest {max(late_s):.2f}",
        f"announcer: {result['announcer_cpu_us_an_event']:.0f} us of CPU time an event",
    ]
    return conclude(Figure("letters", METHOD, targets, result), options, text)


def cancellations(stack: Stack, sale_id: str, tokens: Sequence[str], *, seconds: float) -> list[float]:
    """Order and cancel on a schedule, with each account at most once. Returns the seconds until each letter came."""
    cancelled: dict[str, float] = {}
    began = time.time()
    with httpx.Client(base_url=stack.edge_url, timeout=10.0) as client:
        for place, token in enumerate(tokens[: int(seconds / EVERY_S)]):
            time.sleep(max(0.0, began + place * EVERY_S - time.time()))
            headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": f"letters-{place}"}
            placed = client.post(
                f"/v1/sales/{sale_id}/orders", headers=headers, json={"items": [{"sku": SKU, "quantity": 1}]}
            ).raise_for_status()
            order_id = placed.json()["order_id"]
            client.post(f"/v1/orders/{order_id}/cancel", headers=headers).raise_for_status()
            cancelled[order_id] = time.time()
    came: dict[str, float] = {}
    deadline = time.time() + WAIT_S
    while len(came) < len(cancelled) and time.time() < deadline:
        time.sleep(0.2)
        came |= letters(Path(stack.mail_folder), set(cancelled) - set(came))
    assert len(came) == len(cancelled), f"{len(cancelled) - len(came)} of {len(cancelled)} letters did not come"
    return [came[order_id] - cancelled[order_id] for order_id in cancelled]


def letters(folder: Path, order_ids: set[str]) -> dict[str, float]:
    """The letters that name these orders: order id and the time at which the file was written."""
    found: dict[str, float] = {}
    for path in folder.glob("*.eml"):
        content = path.read_text(encoding="ascii")
        found |= {order_id: path.stat().st_mtime for order_id in order_ids if order_id in content}
    return found


def query_us(stack: Stack, strangers: int) -> float:
    """Server time of the announcer's query, divided by the number of buyers without an account in it."""
    measured: list[float] = []
    with psycopg.connect(stack.shard_dsns[0], autocommit=True) as connection:
        connection.execute(_FILL)
        for _ in range(50):
            asked = {"user_ids": [ids.new_uuid7() for _ in range(strangers)]}
            ((plan,),) = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {SQL['email']}", asked).fetchall()
            measured.append((plan[0]["Planning Time"] + plan[0]["Execution Time"]) * 1000 / strangers)
    return statistics.median(measured)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.letters", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=float, default=1000.0, help="orders of buyers without an account due a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the schedule of letters")
    parser.add_argument("--accounts", type=int, default=40)
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
