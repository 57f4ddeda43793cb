"""Events a second that one analytics worker counts, from filled topics into PostgreSQL, all on this machine.

    python -m perf.analytics [--events 100000]

Starts its own Redis and PostgreSQL (fsync on), appends events of reserved and paid orders, then starts
`python -m workers.analytics` and waits until every event is counted. Time counts from the first counted event.
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
from pathlib import Path

import psycopg
from psycopg.rows import TupleRow

from devstack.servers import PostgresServer, RedisServer
from domain.orders import OrderStatus
from domain.topology import TOPICS
from perf.processes import cpu_us, tree
from perf.results import Figure, Target, add_options, conclude
from runtime.event_log import open_event_log
from tests.fixtures.fix_databases import migrated_databases
from tests.workers.counting import Story, append

EVENTS_PER_S_MIN = 10_000
LOOK_S = 0.05
STILL_S_MAX = 60.0
SPAN_MS = 60_000  # the orders are spread over this time
METHOD = (
    "Events of reserved and paid orders wait in orders.v1 (Redis Streams, 16 partitions); one "
    "`python -m workers.analytics` counts them into one PostgreSQL (fsync on). Time from the first counted event to the "
    "last. All on this machine."
)


async def fill(url: str, *, events: int) -> None:
    """Half of the events are reservations, the other half their payments."""
    story = Story(random.Random(1), int(time.time() * 1000) - 600_000)
    for place in range(events // 2):
        at_ms = story.start_ms + place * SPAN_MS // (events // 2)
        story.becomes(story.order(at_ms), OrderStatus.PAID, at_ms + 30_000)
    log = open_event_log(url, TOPICS, records_max=events)
    await append(log, story.events)
    await log.close()


def counted(connection: psycopg.Connection[TupleRow]) -> int:
    row = connection.execute("SELECT coalesce(sum(orders + paid), 0) FROM figures.minutes").fetchone()
    assert row is not None
    return int(row[0])


def wait_counted(connection: psycopg.Connection[TupleRow], worker: subprocess.Popen[bytes], least: int) -> int:
    """Wait until `least` events are counted. RuntimeError when the worker ended, or counted none for `STILL_S_MAX`."""
    before, moved = -1, time.monotonic()
    while (count := counted(connection)) < least:
        if count != before:
            before, moved = count, time.monotonic()
        if worker.poll() is not None or time.monotonic() - moved > STILL_S_MAX:
            raise RuntimeError(f"the worker stands still at {count} of {least} events (exit code {worker.poll()})")
        time.sleep(LOOK_S)
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000, help="events in the topic")
    add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        redis, postgres = RedisServer(Path(folder) / "redis"), PostgresServer(Path(folder) / "postgres")
        worker = None
        try:
            redis.start()
            postgres.start()
            databases = migrated_databases(postgres)
            asyncio.run(fill(redis.url, events=options.events))
            urls = {f"FLASHSALE_{name}_URL": redis.url for name in ("REDIS", "QUEUE", "EVENT_LOG")}
            worker = subprocess.Popen(
                [sys.executable, "-m", "workers.analytics"], env=os.environ | databases.environ | urls
            )
            with psycopg.connect(databases.analytics_dsn, autocommit=True) as connection:
                first = wait_counted(connection, worker, 1)
                began, cpu_began = time.perf_counter(), cpu_us(tree(worker.pid))
                last = wait_counted(connection, worker, options.events)
                took_s, cpu = time.perf_counter() - began, cpu_us(tree(worker.pid)) - cpu_began
        finally:
            if worker is not None:
                worker.terminate()
                worker.wait(20)
            postgres.destroy()
            redis.destroy()
    rate = (last - first) / took_s
    result = {
        "events_per_s": round(rate),
        "events": last - first,
        "seconds": round(took_s, 2),
        "worker_cpu_us_per_event": round(cpu / (last - first), 1),
    }
    target = Target("events counted a second", rate, "events/s", least=EVENTS_PER_S_MIN)
    return conclude(Figure("analytics", METHOD, [target], result), options, [str(result)])


if __name__ == "__main__":
    sys.exit(main())
