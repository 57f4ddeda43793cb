"""Clients held through PgBouncer while work goes on, and the lag of the synchronous standby under full write load.

A pair of PostgreSQL servers with a PgBouncer before the primary. Writers insert batches of rows as fast as they can,
first alone, then beside the held clients, each of which asks a query in turn.

    python -m perf.pooled [--clients 10000] [--seconds 20] [--save] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from devstack import pgbouncer
from devstack.pgbouncer import PgBouncer
from devstack.postgres_pair import PostgresPair, pair_at
from perf.results import Figure, Target, add_options, conclude, progress
from runtime.process.errors import OperatorError

WRITERS = 4
BATCH_ROWS = 500
CONNECTING_AT_ONCE = 64
CONNECT_S_MAX = 60
LAG_LOOK_S = 0.1
METHOD = (
    "A pair of PostgreSQL servers with a PgBouncer (20 connections) before the primary. Four writers insert batches of 500 "
    "rows as fast as they can, first alone, then beside the held clients, each of which asks a query in turn. Clients are "
    "counted by PgBouncer; the lag is the longest replay_lag that looks at the primary, ten a second, showed."
)
_TABLE = "CREATE TABLE load (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL)"
_INSERT = "INSERT INTO load (text) SELECT repeat(md5(n::text), 10) FROM generate_series(1, %s) AS n"
Connection = psycopg.AsyncConnection[tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Phase:
    """`queries` are those of held clients; `lag_s`: the longest that a look at the primary showed."""

    rows_per_s: float
    queries: int
    lag_s: float


async def measure(pair: PostgresPair, pooler: PgBouncer, *, clients: int, seconds: float) -> tuple[Phase, Phase, int]:
    """Work alone, work beside the held clients, and the clients that the pooler counted."""
    alone = await _work(pair, pooler, [], seconds=seconds)
    held = await _hold(pooler.dsn("postgres"), clients)
    try:
        beside = await _work(pair, pooler, held, seconds=seconds)
        pools = await asyncio.to_thread(pooler.show, "pools")
        counted = sum(row["cl_active"] + row["cl_waiting"] for row in pools if row["database"] == "postgres")
    finally:
        for client in held:
            await client.close()
    return alone, beside, counted


async def _connect(dsn: str) -> Connection:
    # Prepared statements stay in one session: PgBouncer 1.18 has none.
    return await psycopg.AsyncConnection.connect(
        dsn, autocommit=True, connect_timeout=CONNECT_S_MAX, prepare_threshold=None
    )


async def _hold(dsn: str, clients: int) -> list[Connection]:
    gate = asyncio.Semaphore(CONNECTING_AT_ONCE)

    async def connect() -> Connection:
        async with gate:
            return await _connect(dsn)

    return list(await asyncio.gather(*(connect() for _ in range(clients))))


async def _work(pair: PostgresPair, pooler: PgBouncer, held: Sequence[Connection], *, seconds: float) -> Phase:
    end = time.monotonic() + seconds

    async def write() -> int:
        rows = 0
        async with await _connect(pooler.dsn("postgres")) as connection:
            while time.monotonic() < end:
                await connection.execute(_INSERT, (BATCH_ROWS,))
                rows += BATCH_ROWS
        return rows

    async def ask() -> int:
        queries = 0
        while held and time.monotonic() < end:
            await held[queries % len(held)].execute("SELECT 1")
            queries += 1
        return queries

    async def look() -> float:
        longest_s = 0.0
        while time.monotonic() < end:
            if (following := await asyncio.to_thread(pair.following)) is not None:
                longest_s = max(longest_s, following.replay_s)
            await asyncio.sleep(LAG_LOOK_S)
        return longest_s

    *rows, queries, lag_s = await asyncio.gather(*(write() for _ in range(WRITERS)), ask(), look())
    return Phase(sum(rows) / seconds, int(queries), lag_s)


def main() -> int:
    """Measure, print, save if asked for."""
    options = _options()
    if pgbouncer.program() is None:
        raise OperatorError(pgbouncer.HOW_TO_INSTALL)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        pair = pair_at(folder, "shard-0")
        pooler: PgBouncer | None = None
        try:
            pair.start()
            pair.primary.ask(_TABLE)
            primary = pair.primary
            pooler = PgBouncer(
                folder / "pgbouncer-0", primary.port, primary.password, clients_max=options.clients + 2 * WRITERS
            )
            pooler.start()
            with progress() as say:
                say(f"{options.clients} clients, two phases of {options.seconds:g} s")
                alone, beside, counted = asyncio.run(
                    measure(pair, pooler, clients=options.clients, seconds=options.seconds)
                )
        finally:
            if pooler is not None:
                pooler.destroy()
            pair.destroy()
    figure = Figure(
        "pooled",
        METHOD,
        [
            Target("clients held", counted, "clients", least=options.clients),
            Target("rows written beside them", beside.rows_per_s / alone.rows_per_s, "of alone", least=0.8),
            Target("longest replica lag", max(alone.lag_s, beside.lag_s), "s", most=2.0),
        ],
        {
            "rows_per_s_alone": alone.rows_per_s, "rows_per_s_beside": beside.rows_per_s,
            "queries_of_held_clients": beside.queries,
        },
    )  # fmt: skip
    return conclude(figure, options)


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m perf.pooled", description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=10_000, help="clients to hold")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each of the two phases")
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
