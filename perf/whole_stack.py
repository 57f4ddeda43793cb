"""The complete embedded stack with an open sale, and the progress of its orders."""

from __future__ import annotations

import secrets
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import redis

from devstack.demo.rehearsal import own_stack
from devstack.state import StateFolder
from domain.sales import STOCK_MAX
from domain.topology import Topology, lane_stream_key, order_queue
from ops.shop import Shop
from ops.stack_file import Stack
from perf.load import Aim, write_tokens
from perf.processes import cpu_us, tree
from runtime.queue.redis_streams import stream_key

ANSWER_S_MAX = 10.0
HOLD_S = 3600  # longer than any measurement, so that no order expires
PURCHASE_LIMIT = 10_000  # a limit is in force, but no buyer reaches it
_STORED = "SELECT coalesce(sum(sold), 0) FROM quota WHERE sale_id = %s"
_BY_PREFIX = "SELECT split_part(idempotency_key, '-', 1), count(*) FROM orders WHERE sale_id = %s GROUP BY 1"


@dataclass(frozen=True, slots=True)
class Depths:
    """The places of orders, cumulative or current. `unrelayed`: in lane streams; `queued`: unacknowledged messages."""

    stored: int
    unrelayed: int
    queued_messages: int


@dataclass(slots=True)
class WholeStack:
    """A running stack. Every order has one unit and a long hold, so units sold equal orders stored."""

    stack: Stack
    aim: Aim
    sold_out_sku: str  # of the same sale, not in `aim`
    sale_id: UUID
    redis: redis.Redis
    token_keys: Path
    _shards: list[psycopg.Connection[Any]] = field(default_factory=list)

    def depths(self) -> Depths:
        """Read the counts now; takes a few statements."""
        topology = Topology()
        pipeline = self.redis.pipeline(transaction=False)
        for lane in range(topology.lanes):
            pipeline.xlen(lane_stream_key(lane))
        for shard in range(topology.shards):
            pipeline.xlen(stream_key(order_queue(shard)))
        lengths = pipeline.execute()
        stored = sum(int(row[0]) for shard in self._shards for row in shard.execute(_STORED, (self.sale_id,)))
        return Depths(stored, sum(lengths[: topology.lanes]), sum(lengths[topology.lanes :]))

    def orders_by_key_prefix(self) -> dict[str, int]:
        """Orders of the sale in the shards, by the part of their Idempotency-Key before the first hyphen."""
        found: Counter[str] = Counter()
        for shard in self._shards:
            found.update(dict(shard.execute(_BY_PREFIX, (self.sale_id,)).fetchall()))
        return dict(found)

    def counts(self, process: str) -> dict[str, float]:
        """Counters of a process of the stack (its /metrics), each name summed over its labels."""
        sums: defaultdict[str, float] = defaultdict(float)
        for series, value in self._series(process):
            sums[series.partition("{")[0]] += value
        return dict(sums)

    def edge_outcomes(self) -> dict[str, int]:
        """Orders that the edge has answered so far, by outcome."""
        counts: Counter[str] = Counter()
        for series, value in self._series("edge"):
            if series.startswith("flashsale_edge_orders_total{"):
                counts[series.split('outcome="')[1].split('"')[0]] += int(value)
        return dict(counts)

    def _series(self, process: str) -> Iterator[tuple[str, float]]:
        url = f"{self.stack.metrics[process]}/metrics"  # our own loopback address
        with urllib.request.urlopen(url, timeout=ANSWER_S_MAX) as answer:  # noqa: S310
            text = answer.read().decode()
        for line in text.splitlines():
            if not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                yield series, float(value)

    def cpu_us(self) -> dict[str, float]:
        """CPU time so far per process of the stack, children included."""
        return {name: cpu_us(tree(pid)) for name, pid in self.stack.processes.items()}


@contextmanager
def whole_stack(
    say: Callable[[str], None], *, users: int, settings: Mapping[str, str] | None = None
) -> Iterator[WholeStack]:
    """Start everything, publish a sale, mint tokens. Removes everything afterwards. `settings` are FLASHSALE_*."""
    with (
        own_stack(say, name="perf", settings=settings) as (stack, folder),
        sale_on(stack, folder, say, users=users) as whole,
    ):
        yield whole


@contextmanager
def sale_on(stack: Stack, folder: StateFolder, say: Callable[[str], None], *, users: int) -> Iterator[WholeStack]:
    """Publish a new sale on a running stack, and mint tokens."""
    say("publishing a sale")
    shop = Shop.log_in(stack.backoffice_url, **stack.admin)
    sku = f"PERF-{secrets.token_hex(4).upper()}"
    stock = {sku: STOCK_MAX, f"{sku}-GONE": 0}
    for each in stock:
        shop.create_product(sku=each, name="Perf", price_minor=1999)
    sale = shop.create_open_sale(
        name="Perf", stock=stock, price_minor=1999, hold_s=HOLD_S, per_user_limit=PURCHASE_LIMIT
    )  # fmt: skip
    say(f"minting tokens of {users:,} users")
    tokens = folder.path / "tokens.tsv"
    write_tokens(tokens, folder.token_keys, users=users)
    with redis.Redis.from_url(stack.redis_url) as client:
        shards = [psycopg.connect(dsn, autocommit=True, connect_timeout=5) for dsn in stack.shard_dsns]
        try:
            sale_id = UUID(sale["id"])
            aim = Aim(stack.order_url, [sale_id], [sku], tokens)
            yield WholeStack(stack, aim, f"{sku}-GONE", sale_id, client, folder.token_keys, shards)
        finally:
            for shard in shards:
                shard.close()
