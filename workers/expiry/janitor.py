"""Clears Redis of sales that ended long ago: users' records, applied restocks, then definition and stock; at last the sale.

A lane is cleared only when none of its units is reserved: a hold must be able to end as it would at any other time.
The definition goes last, so a crash in the middle starts over. When all lanes are clear the document goes and edges are told;
a round later, when no edge counts refusals of it any more, its counts and verdict, and its place in the list of sales, which is
what the janitor finds it by. Does not touch orders: their values have a TTL.
"""

from __future__ import annotations

import asyncio
from typing import cast
from uuid import UUID

import orjson
import structlog
from prometheus_client import Counter
from redis.asyncio import Redis

from domain import ids, topology
from domain.sales import LaneSaleState, SaleDefinition, Stock, packed_end
from reservation import scripts
from runtime.redis.leases import Lease
from runtime.redis.scripts import run as run_script

EVERY_S = 60.0
KEYS_PER_STEP = 500
STEP_PAUSE_S = 0.02
LISTED_S = 300  # the document stays so much longer than the lanes: nobody puts it back then (`backoffice.sales`)

UNLINKED = Counter("flashsale_janitor_unlinked", "Users' records removed from Redis after a sale.")
log = structlog.get_logger()


class Janitor:
    """`clear` is one round over all published sales."""

    def __init__(self, redis: Redis, *, kept_s: int) -> None:
        """`kept_s`: how long after its end a sale stays."""
        self._redis = redis
        self._kept_ms = kept_s * 1000
        self._undocumented: set[UUID] = set()  # in the round before

    async def clear(self, lease: Lease) -> bool:
        """Clear every lane of every sale whose time has come, then the sale."""
        seconds, _ = await self._redis.time()
        undocumented: set[UUID] = set()
        async for raw_id in self._redis.sscan_iter(topology.SALES_KEY, count=KEYS_PER_STEP):
            sale_id = UUID(raw_id.decode("ascii"))
            document = await self._redis.get(topology.sale_key(sale_id))
            if document is None:
                # Of a sale that lives the backoffice puts it back long before the next round.
                if sale_id in self._undocumented:
                    await self._forget(sale_id)
                undocumented.add(sale_id)
                continue
            try:
                sale = SaleDefinition.from_document(orjson.loads(document))
            except (ValueError, KeyError, TypeError) as error:
                log.error("sale document is malformed", sale_id=raw_id.decode("ascii"), error=repr(error))
                continue
            if seconds * 1000 < sale.ends_at_ms + self._kept_ms:
                continue
            clear = True
            for lane in sale.lanes:
                if not lease.held:
                    return False
                clear = await self._clear_lane(lease, sale, lane, now_ms=seconds * 1000) and clear
            if clear and seconds * 1000 >= sale.ends_at_ms + self._kept_ms + LISTED_S * 1000:
                await self._redis.unlink(topology.sale_key(sale_id))
                await self._redis.publish(topology.SALES_CHANNEL, f"{topology.SALE_GONE}{sale_id}")
                undocumented.add(sale_id)
        self._undocumented = undocumented
        return False

    async def _forget(self, sale_id: UUID) -> None:
        """The list last: a crash before it brings us here again."""
        await self._redis.unlink(topology.REFUSED_KEY_PREFIX + str(sale_id))
        await self._redis.hdel(topology.ACCEPTED_KEY, str(sale_id))
        await self._redis.hdel(topology.VERDICTS_KEY, str(sale_id))
        await self._redis.srem(topology.SALES_KEY, str(sale_id))
        log.info("sale forgotten", sale_id=str(sale_id))

    async def _clear_lane(self, lease: Lease, sale: SaleDefinition, lane: int, *, now_ms: int) -> bool:
        """Whether the lane knows nothing of the sale any more."""
        state = topology.lane_state_key(lane)
        fields = [topology.stock_field(sale.sale_id, index) for index in range(len(sale.items))]
        values = await self._redis.hmget(state, [topology.definition_field(sale.sale_id), *fields])
        definition, *stocks = cast(list[bytes | None], values)
        if definition is None:
            return True  # cleared before
        # The lane decides about orders, so the lane must know that the sale is over: documents go out last.
        state_there, ends_at_ms = packed_end(definition)
        if state_there is not LaneSaleState.ENDED and now_ms < ends_at_ms + self._kept_ms:
            log.warning("sale is not cleared: the lane takes orders", sale_id=str(sale.sale_id), lane=lane)
            return False
        reserved = sum(Stock.unpack(value).reserved for value in stocks if value is not None)
        if reserved:
            log.warning(
                "sale is not cleared: units are reserved", sale_id=str(sale.sale_id), lane=lane, reserved=reserved
            )
            return False
        cursor, pattern = 0, topology.user_key_pattern(lane, sale.sale_id)
        while True:
            cursor, keys = await self._redis.scan(cursor, match=pattern, count=KEYS_PER_STEP)
            if keys:
                UNLINKED.inc(await self._redis.unlink(*keys))
            if cursor == 0:
                break
            await asyncio.sleep(STEP_PAUSE_S)
            if not lease.held:
                return False
        await self._redis.unlink(topology.restock_key(lane, sale.sale_id))
        removed = await run_script(self._redis, scripts.FORGET, [state], [ids.short(sale.sale_id)])
        log.info("sale cleared from lane", sale_id=str(sale.sale_id), lane=lane, fields=removed)
        return True
