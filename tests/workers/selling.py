"""A published sale on real Redis and PostgreSQL, sold by the real scripts; entries go to the shards without a queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

import orjson
import redis

from domain import topology
from domain.messages import SequencedEntry
from domain.orders import OrderEntry, encode_entry
from domain.outcomes import Outcome, Transition
from domain.sales import SaleDefinition, Stock, spread
from tests.reservation.lane import LANE, LaneClient, make_request, make_sale
from tests.workers.making import TOPOLOGY, Maker, stock
from tests.workers.writing import Bench, incoming


@dataclass
class Market:
    """One sale in one lane. `stored_upto` is the newest entry that went to the shards."""

    bench: Bench
    maker: Maker
    lane: LaneClient
    sale: SaleDefinition
    stored_upto: int = 0
    orders: list[OrderEntry] = field(default_factory=list)

    @property
    def redis(self) -> redis.Redis:
        """A synchronous client."""
        client: redis.Redis = self.lane.redis
        return client

    def publish(self, units: int) -> None:
        """Ledger, lane and document, as publishing makes them."""
        stock(self.bench.databases, self.sale.sale_id, {item.sku: units for item in self.sale.items})
        count = len(self.sale.lanes)
        for lane, share in zip(self.sale.lanes, spread(units, lanes=count), strict=True):
            client = LaneClient(self.redis, lane)
            client.load(self.sale, [Stock.fresh(share, lanes=count) for _ in self.sale.items])
        self.redis.set(topology.sale_key(self.sale.sale_id), orjson.dumps(self.sale.as_document()))
        self.redis.sadd(topology.SALES_KEY, str(self.sale.sale_id))

    def buy(
        self, count: int = 1, *, shard: int | None = None, lines: Sequence[tuple[int, int]] = ((0, 1),)
    ) -> list[OrderEntry]:
        """Reserve orders of new users, one unit each unless said otherwise."""
        bought = []
        for place in range(count):
            user_id = self.maker.user(place % TOPOLOGY.shards if shard is None else shard)
            request = make_request(self.sale, user_id, f"key-{self.maker.rng.getrandbits(48):x}", lines)
            assert self.lane.outcome(request) is Outcome.ACCEPTED
            order = self.lane.order(request.order.order_id)
            assert order is not None
            bought.append(order)
        self.orders += bought
        return bought

    def cancel(self, order: OrderEntry) -> None:
        """By its buyer."""
        assert self.lane.cancel(order)[0] is Transition.DONE

    async def store(self, *, without: Sequence[int] = ()) -> None:
        """Store all entries that came since the last time, but those at some places of the lane."""
        by_shard: dict[int, list[SequencedEntry]] = {}
        for seq, entry in self.lane.stream().items():
            if seq > self.stored_upto and seq not in without:
                shard = TOPOLOGY.shard_of_order(entry.order_id)
                by_shard.setdefault(shard, []).append(SequencedEntry(LANE, seq, encode_entry(entry)))
            last = seq
        self.stored_upto = last
        for shard, entries in by_shard.items():
            result = await self.bench.store(shard).store(incoming(entries, shard=shard))
            assert not result.waiting and not result.poison
            if result.given_up:
                await self.bench.grants(shard).lower_to(result.given_up)


def open_market(
    bench: Bench,
    maker: Maker,
    client: redis.Redis,
    *,
    units: int,
    hold_ms: int = 3_600_000,
    ends_at_ms: int | None = None,
    lanes: tuple[int, ...] = (LANE,),
) -> Market:
    """Publish a sale of one SKU; orders of a sale over many lanes are in the first one."""
    sale = make_sale(hold_ms=hold_ms, sale_id=UUID(int=maker.rng.getrandbits(128), version=4), lanes=lanes)
    if ends_at_ms is not None:
        sale = replace(sale, ends_at_ms=ends_at_ms)
    market = Market(bench, maker, LaneClient(client), sale)
    market.publish(units)
    return market
