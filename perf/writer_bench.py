"""Orders a second that one shard writer process stores, from a filled queue into four shards, all on this machine.

    python -m perf.writer_bench [--orders 60000] [--message 250] [--redelivered]

Starts its own Redis and PostgreSQL (fsync on), puts messages into the queue as a relay does, then starts
`python -m workers.shard_writer` and waits until every order is stored. Time counts from the first stored order.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import psycopg
from psycopg.rows import TupleRow

from devstack.servers import PostgresServer, RedisServer
from domain import ids
from domain.messages import encode_orders
from domain.topology import Topology, order_queue
from perf.processes import cpu_us, tree
from perf.results import Figure, Target, add_options, conclude
from runtime.queue import open_queue
from tests.fixtures.fix_databases import migrated_databases
from tests.workers.making import Maker, stock

LOOK_S = 0.05
REFERENCE_ROWS = 2000
RATIO_MIN = 0.30
_REFERENCE_LINES = '[{"sku": "SKU-1", "quantity": 1, "unit_price_minor": 1999}]'
_REFERENCE_TABLE = """
CREATE TABLE plain_orders (
    id uuid PRIMARY KEY, user_id uuid NOT NULL, sale_id uuid NOT NULL, idempotency_key text NOT NULL,
    currency text NOT NULL, lines jsonb NOT NULL, status smallint NOT NULL, version integer NOT NULL,
    reserved_at timestamptz NOT NULL, expires_at timestamptz NOT NULL, UNIQUE (user_id, sale_id, idempotency_key)
)
"""
_REFERENCE_INSERT = """
INSERT INTO plain_orders
SELECT id, buyer, '00000000-0000-7000-8000-000000000000', key, 'EUR', lines, 0, 1, now(), now() + interval '10 minutes'
FROM unnest(%(ids)s::uuid[], %(users)s::uuid[], %(keys)s::text[], %(lines)s::jsonb[]) AS given (id, buyer, key, lines)
"""
STILL_S_MAX = 60.0
METHOD = (
    "Messages as from a relay wait in the queue (Redis Streams); one `python -m workers.shard_writer` stores them in "
    "four databases of one PostgreSQL (fsync on). Time from the first stored order to the last. Then the reference: the "
    "order's columns into a plain table with the same keys, INSERT ... SELECT unnest of 2,000 rows, a thread a shard. All "
    "on this machine."
)


async def fill(url: str, maker: Maker, *, orders: int, message_orders: int, times: int) -> None:
    queue = open_queue(url, Topology().queues)
    for shard in range(4):
        entries = []
        for _ in range(orders // 4):
            numbered = maker.numbered(maker.order(shard=shard))
            entries.append((numbered.lane_seq, numbered.entry))
        for start in range(0, len(entries), message_orders):
            body = encode_orders(maker.lane, entries[start : start + message_orders])
            for _ in range(times):
                await queue.publish(order_queue(shard), body, message_id=f"{shard}-{start}")
    await queue.close()


def stored(shards: Sequence[psycopg.Connection[TupleRow]]) -> int:
    total = 0
    for connection in shards:
        row = connection.execute("SELECT coalesce(sum(sold), 0) FROM quota").fetchone()
        assert row is not None
        total += int(row[0])
    return total


def wait_stored(shards: Sequence[psycopg.Connection[TupleRow]], writer: subprocess.Popen[bytes], least: int) -> int:
    """Wait until `least` units are stored. RuntimeError when the writer ended, or stored none for `STILL_S_MAX`."""
    before, moved = -1, time.monotonic()
    while (count := stored(shards)) < least:
        if count != before:
            before, moved = count, time.monotonic()
        if writer.poll() is not None or time.monotonic() - moved > STILL_S_MAX:
            raise RuntimeError(f"the writer stands still at {count} of {least} orders (exit code {writer.poll()})")
        time.sleep(LOOK_S)
    return count


def plain_inserts(dsns: Sequence[str], *, orders: int) -> float:
    """Rows a second of the reference: the order's columns into a plain table with the same keys, 2,000 a transaction.

    A connection and a thread for each shard. No other table, no queue.
    """
    share = orders // len(dsns)

    def insert(dsn: str) -> None:
        with psycopg.connect(dsn) as connection:
            for start in range(0, share, REFERENCE_ROWS):
                rows = min(REFERENCE_ROWS, share - start)
                values = {
                    "ids": [ids.new_uuid7() for _ in range(rows)],
                    "users": [uuid4() for _ in range(rows)],
                    "keys": [str(uuid4()) for _ in range(rows)],
                    "lines": [_REFERENCE_LINES] * rows,
                }
                connection.execute(_REFERENCE_INSERT, values)
                connection.commit()

    for dsn in dsns:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(_REFERENCE_TABLE)
    began = time.perf_counter()
    with ThreadPoolExecutor(len(dsns)) as threads:
        list(threads.map(insert, dsns))
    return share * len(dsns) / (time.perf_counter() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--orders", type=int, default=240_000, help="a run of a few seconds measures mostly start and end"
    )
    parser.add_argument("--message", type=int, default=250, help="orders in a message")
    parser.add_argument("--redelivered", action="store_true", help="deliver every message twice")
    add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        redis, postgres = RedisServer(Path(folder) / "redis"), PostgresServer(Path(folder) / "postgres")
        writer = None
        looks = ExitStack()
        try:
            redis.start()
            postgres.start()
            databases = migrated_databases(postgres)
            maker = Maker(random.Random(1), uuid4())
            stock(databases, maker.sale_id, {"SKU-1": options.orders})
            times = 2 if options.redelivered else 1
            asyncio.run(fill(redis.url, maker, orders=options.orders, message_orders=options.message, times=times))
            environ = databases.environ | {"FLASHSALE_REDIS_URL": redis.url, "FLASHSALE_QUEUE_URL": redis.url}
            writer = subprocess.Popen([sys.executable, "-m", "workers.shard_writer"], env=os.environ | environ)
            # Kept open: new connections for each look took half a core from the measured processes.
            shards = [looks.enter_context(psycopg.connect(dsn, autocommit=True)) for dsn in databases.shard_dsns]
            first = wait_stored(shards, writer, 1)
            assert postgres.process is not None
            before = [cpu_us(tree(pid)) for pid in (writer.pid, postgres.process.pid)]
            began = time.perf_counter()
            count = wait_stored(shards, writer, options.orders)
            took = time.perf_counter() - began
            after = [cpu_us(tree(pid)) for pid in (writer.pid, postgres.process.pid)]
            orders = count - first
            writer.terminate()
            writer.wait(20)
            reference = plain_inserts(databases.shard_dsns, orders=options.orders)
            writer_us, postgres_us = ((late - early) / orders for early, late in zip(before, after, strict=True))
        finally:
            if writer is not None:
                writer.terminate()
                writer.wait(20)
            looks.close()
            postgres.destroy()
            redis.destroy()
    result = {
        "orders": orders, "seconds": took, "writer_us_an_order": writer_us, "postgres_us_an_order": postgres_us,
        "plain_inserts_a_second": reference,
    }  # fmt: skip
    targets = [
        Target("orders stored a second, stream to four shards", orders / took, "a second", least=25_000, goal=40_000),
        Target("against plain inserts in the same run", orders / took / reference, "times", least=RATIO_MIN),
    ]
    text = [
        f"{orders} orders in {took:.2f} s; "
        f"CPU time per order: writer {writer_us:.1f} us, PostgreSQL {postgres_us:.1f} us; "
        f"plain inserts {reference:,.0f} a second"
    ]
    return conclude(Figure("writer", METHOD, targets, result), options, text)


if __name__ == "__main__":
    sys.exit(main())
