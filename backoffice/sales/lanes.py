"""A sale in Redis: its definition and stock in its lanes, and the document that edges read. Every step may be repeated."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

import orjson
from redis.asyncio import Redis
from redis.exceptions import WatchError

from backoffice.sales.store import Restock
from backoffice.web.idempotency import KeyReused
from domain import ids, topology
from domain.sales import SaleDefinition, Stock
from reservation import scripts
from runtime.redis.scripts import run as run_script

_PUT_ATTEMPTS_MAX = 5


class LaneForgot(Exception):
    """A lane does not know a sale that was loaded, or knows another epoch: it must be rebuilt, never loaded again."""

    def __init__(self, *, sale_id: UUID, lane: int) -> None:
        """Which sale, in which lane."""
        super().__init__(f"lane {lane} does not know sale {sale_id}")
        self.sale_id = sale_id
        self.lane = lane


class SaleLanes:
    """Talks to the reservation Redis about sales."""

    def __init__(self, redis: Redis) -> None:
        """Uses the client, does not own it."""
        self._redis = redis

    async def load(self, definition: SaleDefinition, units: tuple[int, ...]) -> None:
        """Give each lane the sale, the first one all the stock (`units` by SKU index). What a lane knows stays."""
        sale, packed = ids.short(definition.sale_id), definition.pack_for_lane()
        for place, lane in enumerate(definition.lanes):
            stock = [Stock.fresh(count if place == 0 else 0).pack() for count in units]
            await run_script(self._redis, scripts.LOAD, [topology.lane_state_key(lane)], [sale, packed, *stock])

    async def define(self, definition: SaleDefinition) -> None:
        """Give each lane a newer definition; LaneForgot. A lane that has this or a newer one keeps it."""
        sale, packed = ids.short(definition.sale_id), definition.pack_for_lane()
        for lane in definition.lanes:
            answer = await run_script(self._redis, scripts.DEFINE, [topology.lane_state_key(lane)], [sale, packed])
            if answer < 0:
                raise LaneForgot(sale_id=definition.sale_id, lane=lane)

    async def restock(self, definition: SaleDefinition, restock: Restock) -> None:
        """Add units to the first lane, once per key; LaneForgot, KeyReused."""
        lane = definition.lanes[0]
        answer = await run_script(
            self._redis,
            scripts.RESTOCK,
            [topology.lane_state_key(lane), topology.restock_key(lane, restock.sale_id)],
            [ids.short(restock.sale_id), restock.sku_index, restock.quantity, restock.idempotency_key],
        )
        if answer == -1:
            raise LaneForgot(sale_id=restock.sale_id, lane=lane)
        if answer == -2:
            raise KeyReused

    async def announce(self, definition: SaleDefinition) -> None:
        """Put the document unless there is a newer one, list the sale, and tell edges to look."""
        await self._put(definition)
        await self._redis.sadd(topology.SALES_KEY, str(definition.sale_id))
        await self._redis.publish(topology.SALES_CHANNEL, str(definition.sale_id))

    async def _put(self, definition: SaleDefinition) -> None:
        key = topology.sale_key(definition.sale_id)
        async with self._redis.pipeline(transaction=True) as pipeline:
            for _ in range(_PUT_ATTEMPTS_MAX):
                await pipeline.watch(key)
                known = document_version(cast(bytes | None, await pipeline.get(key)))
                if known is not None and known >= (definition.epoch, definition.version):
                    return
                pipeline.multi()  # type: ignore[no-untyped-call]
                pipeline.set(key, orjson.dumps(definition.as_document()))
                try:
                    await pipeline.execute()
                    return
                except WatchError:
                    continue  # someone else put a document; ours may be the older one now
        raise TimeoutError(f"document of sale {definition.sale_id} changes all the time")

    async def documents(self, sale_ids: list[UUID]) -> list[tuple[int, int] | None]:
        """(epoch, version) of each sale's document, None for none."""
        keys = [topology.sale_key(sale_id) for sale_id in sale_ids]
        raw = cast(list[bytes | None], await self._redis.mget(keys))
        return [document_version(value) for value in raw]

    async def listed(self) -> set[str]:
        """Ids of the sales that edges find when they start."""
        members = cast(set[bytes], await self._redis.smembers(topology.SALES_KEY))
        return {member.decode("ascii") for member in members}

    async def stock(self, definition: SaleDefinition) -> list[Stock]:
        """Counters by SKU index, summed over the lanes; LaneForgot."""
        fields = [topology.stock_field(definition.sale_id, index) for index in range(len(definition.items))]
        sums = [Stock.fresh(0)] * len(fields)
        for lane in definition.lanes:
            values = cast(list[bytes | None], await self._redis.hmget(topology.lane_state_key(lane), fields))
            for index, value in enumerate(values):
                if value is None:
                    raise LaneForgot(sale_id=definition.sale_id, lane=lane)
                sums[index] = _add(sums[index], Stock.unpack(value))
        return sums

    async def refused(self, sale_id: UUID) -> dict[str, int]:
        """How often edges refused, by code."""
        raw = cast(dict[bytes, bytes], await self._redis.hgetall(topology.REFUSED_KEY_PREFIX + str(sale_id)))
        return {code.decode("ascii"): int(count) for code, count in sorted(raw.items())}

    async def verdict(self, sale_id: UUID) -> dict[str, Any]:
        """The reconciler's last verdict; empty when there is none."""
        raw = await self._redis.hget(topology.VERDICTS_KEY, str(sale_id))
        verdict: dict[str, Any] = orjson.loads(raw) if raw is not None else {}
        return verdict


def document_version(raw: bytes | None) -> tuple[int, int] | None:
    """(epoch, version) of a sale's document; None for no document, and for one that cannot be read."""
    if raw is None:
        return None
    try:
        document = orjson.loads(raw)
        return int(document["epoch"]), int(document["version"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None  # put anew by whoever asks


def _add(one: Stock, other: Stock) -> Stock:
    return Stock(
        one.available + other.available,
        one.reserved + other.reserved,
        one.paid + other.paid,
        one.rejected + other.rejected,
        one.allotted + other.allotted,
        one.borrowed + other.borrowed,
        one.lent + other.lent,
    )
