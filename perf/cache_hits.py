"""Hit rates of the caches of products and accounts: Zipf 1.0 over 100,000 rows, 1% writes, from a cold start.

    python -m perf.cache_hits [--rows 100000] [--reads 2000000] [--rate 500] [--save] [--json] [--gate]

"Room for 10%" has three readings, each measured with reads and writes drawn by the same law:

        process       the process tier holds 10% of the rows, Redis all that arrive within its time to live
        both bounded  as before, and Redis has memory for about 40%, from which it evicts the least used (allkeys-lfu)
        alone         the process tier holds 10%, without Redis

The third cannot reach 90%: in Zipf 1.0 over 100,000 rows, 81% of all reads are for the most popular 10,000, so no
choice of 10,000 entries answers more. It shows how close the admission policy comes to this limit, and has no target.
That policy does not depend on the kind of rows, so accounts are measured in the first two only.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from uuid import UUID

import uvloop
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from backoffice.caching.cache import Bounds, Cache, Codec
from backoffice.caching.caches import Caches
from backoffice.catalogue.store import PRODUCT_CODEC, Product
from backoffice.users.model import USER_CODEC, User
from devstack.servers import RedisServer
from perf.results import Figure, Target, add_options, conclude, progress
from runtime.process.settings import Settings
from runtime.process.supervision import TaskSupervisor
from runtime.process.telemetry import configure_logging

ROOM_SHARE = 0.10
REDIS_SHARE = 0.40
WRITE_SHARE = 0.01
HIT_RATE_MIN = 0.90
TOGETHER = 16  # concurrent reads
SAMPLES = 20
SEED = 1
METHOD = (
    "The cache of the backoffice on its own Redis, in one process, 16 reads at a time; rows come from memory instead "
    "of PostgreSQL, which decides no hit. Reads and writes are drawn by Zipf 1.0 over 100,000 rows, one write in a "
    "hundred, from empty tiers. The process tier's clock advances by 1 / rate seconds per read, so that entries age "
    "as at 500 reads a second; Redis' times to live do not. Counted by flashsale_cache_hits_total and "
    "flashsale_cache_misses_total of /metrics: hits of either tier over all reads; a read that waited for the load of "
    "another one is a miss."
)


@dataclass(frozen=True, slots=True)
class Subject:
    """A kind of cached rows. `make` makes the row of a rank; `entry_bytes`: its size in Redis with key and overhead."""

    name: str
    codec: Codec[Any]
    make: Callable[[int], Any]
    entry_bytes: int


@dataclass(slots=True)
class Table:
    """Rows by rank, most popular first, and counts of reads and writes."""

    keys: list[str]
    rows: dict[str, Any]
    reads: int = 0
    writes: int = 0

    @classmethod
    def of(cls, subject: Subject, count: int) -> Table:
        """Rows of about the size of a shop's."""
        rows = {str(UUID(int=n)): subject.make(n) for n in range(1, count + 1)}
        return cls(list(rows), rows)

    def load(self, key: str) -> Callable[[], Any]:
        """A function that reads a row."""

        async def read() -> Any:
            await asyncio.sleep(0)
            return self.rows[key]

        return read


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading of "room for 10%". `redis_entries`: about how many fit into Redis; None: all; 0: no Redis."""

    name: str
    redis_entries: int | None


def main() -> int:
    options = _options()
    readings = (
        Reading("process", None),
        Reading("both bounded", int(options.rows * REDIS_SHARE)),
        Reading("alone", 0),
    )
    todo = [(PRODUCTS, each) for each in readings] + [(USERS, each) for each in readings[:2]]
    result: dict[str, Any] = {}
    # A hit rate does not depend on time, so the processes may use all cores.
    with progress() as say, ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        started = [
            (f"{subject.name}, {reading.name}", pool.submit(_measure, subject.name, reading, options))
            for subject, reading in todo
        ]
        for done, (name, measured) in enumerate(started):
            say(f"{name}: {done} of {len(started)} done")
            result[name] = measured.result()
    targets = [
        Target(f"hit rate, {name}, cold start included", measured["hit_rate"], "of 1", least=HIT_RATE_MIN)
        for name, measured in result.items()
        if not name.endswith("alone")
    ]
    result["share of the most popular tenth"] = share_of_most_popular(options.rows, ROOM_SHARE)
    return conclude(Figure("cache_hits", METHOD, targets, result), options, as_text(result))


def _measure(subject: str, reading: Reading, options: argparse.Namespace) -> dict[str, Any]:
    """Run `measure` in its own process."""
    configure_logging("perf", "ERROR")  # one reading has no Redis on purpose
    by_name = {each.name: each for each in (PRODUCTS, USERS)}
    return uvloop.run(measure(by_name[subject], reading, rows=options.rows, reads=options.reads, rate=options.rate))


async def measure(subject: Subject, reading: Reading, *, rows: int, reads: int, rate: float) -> dict[str, Any]:
    """Hit rates from empty tiers, over all reads and over the last twentieth, and their composition."""
    table = Table.of(subject, rows)
    registry = CollectorRegistry()
    with tempfile.TemporaryDirectory() as folder:
        redis = RedisServer(Path(folder), durable=False, extra=_eviction(subject, reading))
        if reading.redis_entries != 0:
            redis.start()
        try:
            caches = Caches(redis.url, registry, now=lambda: table.reads / rate)
            bounds = replace(Bounds.from_settings(Settings.model_validate({})), entries_max=int(rows * ROOM_SHARE))
            if reading.redis_entries == 0:
                # The measurement is about room: entries live as long as in Redis.
                bounds = replace(bounds, unfollowed_ttl_s=bounds.redis_ttl_s)
            cache = caches.add(subject.name, subject.codec, bounds)
            async with caches.running(TaskSupervisor()):
                while reading.redis_entries != 0 and not caches.follows:  # noqa: ASYNC110 - tells nobody
                    await asyncio.sleep(0.01)
                samples = await _drive(cache, table, registry, reads=reads)
            held = _entries(redis.url) if reading.redis_entries != 0 else 0
        finally:
            redis.stop()
    first, last = samples[-2] if len(samples) > 1 else _NOTHING, samples[-1]
    return {
        "reads": table.reads,
        "writes": table.writes,
        "hit_rate": last.hit_rate,
        "hit_rate_at_the_end": last.since(first).hit_rate,
        "of_process_tier": last.process_hits / last.reads,
        "of_redis_tier": last.redis_hits / last.reads,
        "redis_entries": held,
        "redis_failures": registry.get_sample_value("flashsale_cache_redis_failures_total"),
        "evicted_by_size": counters(registry)["flashsale_cache_evictions_total", "process", "size"],
        "course": [round(sample.hit_rate, 4) for sample in samples],
    }


@dataclass(frozen=True, slots=True)
class Counts:
    """The counters of /metrics at one moment."""

    process_hits: float
    process_misses: float
    redis_hits: float

    @property
    def reads(self) -> float:
        """All reads."""
        return self.process_hits + self.process_misses

    @property
    def hit_rate(self) -> float:
        """Hits of either tier over all reads."""
        return (self.process_hits + self.redis_hits) / self.reads

    def since(self, before: Counts) -> Counts:
        """The increase since `before`."""
        return Counts(
            self.process_hits - before.process_hits,
            self.process_misses - before.process_misses,
            self.redis_hits - before.redis_hits,
        )


_NOTHING = Counts(0, 0, 0)


def counters(registry: CollectorRegistry) -> dict[tuple[str, str, str], float]:
    """Counters of the one cache in the text of /metrics: by name, tier and reason."""
    text = generate_latest(registry).decode()
    return {
        (sample.name, sample.labels.get("tier", ""), sample.labels.get("reason", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "cache" in sample.labels
    }


def _counts(registry: CollectorRegistry) -> Counts:
    shown = counters(registry)
    return Counts(
        shown["flashsale_cache_hits_total", "process", ""],
        shown["flashsale_cache_misses_total", "process", ""],
        shown["flashsale_cache_hits_total", "redis", ""],
    )


async def _drive(cache: Cache[Any], table: Table, registry: CollectorRegistry, *, reads: int) -> list[Counts]:
    rng = random.Random(SEED)
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(table.keys) + 1)))

    async def work(drawn: list[str]) -> None:
        while drawn:
            key = drawn.pop()
            if rng.random() < WRITE_SHARE:
                table.writes += 1
                async with cache.changing(key):
                    old = table.rows[key]
                    table.rows[key] = replace(old, version=old.version + 1)
                continue
            table.reads += 1
            newest = table.rows[key].version
            row = await cache.get(key, table.load(key))
            assert row is not None and row.version >= newest, "the cache returned an old row"

    samples: list[Counts] = []
    for _ in range(SAMPLES):
        drawn = rng.choices(table.keys, cum_weights=weights, k=reads // SAMPLES)
        await asyncio.gather(*(work(drawn) for _ in range(TOGETHER)))
        samples.append(_counts(registry))
    return samples


def share_of_most_popular(rows: int, room_share: float) -> float:
    """The share of reads for the most popular rows, which no cache of that many entries can exceed."""
    weights = [1 / rank for rank in range(1, rows + 1)]
    return sum(weights[: int(rows * room_share)]) / sum(weights)


def as_text(result: dict[str, Any]) -> list[str]:
    """One line per reading."""
    lines = [
        f"{name}: hit rate {measured['hit_rate']:.3f}, at the end {measured['hit_rate_at_the_end']:.3f}; process tier "
        f"{measured['of_process_tier']:.3f}, Redis {measured['of_redis_tier']:.3f} of {measured['reads']:,} reads"
        for name, measured in result.items()
        if isinstance(measured, dict)
    ]
    return [*lines, f"the most popular tenth: {result['share of the most popular tenth']:.3f} of all reads"]


def _entries(url: str) -> int:
    with Redis.from_url(url) as client:
        return int(client.dbsize())


def _eviction(subject: Subject, reading: Reading) -> tuple[str, ...]:
    if not reading.redis_entries:
        return ()
    # The memory of an empty server, plus the entries.
    room = 2 * 1024 * 1024 + reading.redis_entries * subject.entry_bytes
    return ("--maxmemory", str(room), "--maxmemory-policy", "allkeys-lfu")


def _product(number: int) -> Product:
    return Product(
        id=UUID(int=number),
        sku=f"SKU-{number:07d}",
        name=f"Thing {number}",
        description=f"A thing of many uses, number {number}. " + "It lasts. " * (number % 12),
        price_minor=100 + number % 5000,
        currency="EUR",
        attributes={"color": "red", "material": "wood", "year": 2015 + number % 11},
        active=True,
        version=1,
    )


def _user(number: int) -> User:
    return User(
        id=UUID(int=number),
        email=f"buyer-{number}@example.org",
        name=f"Buyer of number {number}",
        role="buyer",
        version=1,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        email_verified=True,
    )


PRODUCTS = Subject("product", PRODUCT_CODEC, _product, 700)
USERS = Subject("user", USER_CODEC, _user, 475)


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m perf.cache_hits", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000, help="products, and accounts, that are read")
    parser.add_argument(
        "--reads", type=int, default=2_000_000, help="reads and writes of each reading, from empty tiers"
    )
    parser.add_argument("--rate", type=float, default=500.0, help="reads a second by the process tier's clock")
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
