"""Clears Redis of sales that ended long ago, in this order:

    each lane      users' hashes and applied restocks, then definition and stock; only when no unit is reserved
    the document   when all lanes are clear and `LISTED_S` have passed; edges are told
    the rest       a round later: counts, verdict and the place in the list of sales, by which the janitor finds a sale

A hold must be able to end as at any other time, so a lane with reserved units waits. The janitor finds the first parts
by the last ones, so after a crash in the middle it starts over. Does not touch orders: their values have a TTL.
"""

from __future__ import annotations

import asyncio
from uuid import UUID

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from domain import topology
from domain.outcomes import ForgetAnswer
from domain.sales import LaneSaleState, SaleDefinition
from reservation.documents import MalformedDocument, SaleDocuments, decode_document
from reservation.lane import Lanes
from reservation.reading import read_sale
from runtime.redis.clock import now_ms
from runtime.redis.leases import Lease

EVERY_S = 60.0
KEYS_PER_STEP = 500
STEP_PAUSE_S = 0.02
LISTED_S = 300  # the document outlives the lanes by this time, after which the backoffice does not put it again

UNLINKED = Counter("flashsale_janitor_unlinked", "Users' records removed from Redis after a sale.")
log = structlog.get_logger()


class Janitor:
    """`clear` is one round over all published sales."""

    def __init__(self, redis: Redis, *, kept_s: int) -> None:
        """`kept_s`: time after its end for which a sale stays."""
        self._redis = redis
        self._lanes = Lanes(redis)
        self._documents = SaleDocuments(redis)
        self._kept_ms = kept_s * 1000
        self._undocumented: set[UUID] = set()  # in the round before

    async def clear(self, lease: Lease) -> bool:
        """Clear each lane of every sale that is due, then the sale; False: nothing to do at once."""
        redis_ms = await now_ms(self._redis)
        undocumented: set[UUID] = set()
        async for sale_id in self._documents.scan():
            (document,) = await self._documents.read_raw([sale_id])
            if document is None:
                # The backoffice puts the document of a running sale again long before the next round.
                if sale_id in self._undocumented:
                    await self._forget(sale_id)
                undocumented.add(sale_id)
                continue
            try:
                sale = decode_document(document)
            except MalformedDocument as error:
                log.error("sale document is malformed", sale_id=str(sale_id), error=str(error))
                continue
            if redis_ms < sale.ends_at_ms + self._kept_ms:
                continue
            is_clear = True
            for lane in sale.lanes:
                if not lease.held:
                    return False
                try:
                    is_clear = await self._clear_lane(lease, sale, lane, redis_ms) and is_clear
                except ResponseError as error:  # damaged state of this sale; the others leave Redis all the same
                    log.error("sale is not cleared", sale_id=str(sale_id), lane=lane, error=str(error))
                    is_clear = False
            if is_clear and redis_ms >= sale.ends_at_ms + self._kept_ms + LISTED_S * 1000:
                await self._documents.remove(sale_id)
                undocumented.add(sale_id)
        self._undocumented = undocumented
        return False

    async def _forget(self, sale_id: UUID) -> None:
        """Remove counts, verdict and, last, the place in the list: after a crash the sale is found again."""
        await self._redis.unlink(topology.REFUSED_KEY_PREFIX + str(sale_id))
        await self._redis.hdel(topology.ACCEPTED_KEY, str(sale_id))
        await self._redis.hdel(topology.VERDICTS_KEY, str(sale_id))
        await self._documents.unlist(sale_id)
        log.info("sale forgotten", sale_id=str(sale_id))

    async def _clear_lane(self, lease: Lease, sale: SaleDefinition, lane: int, redis_ms: int) -> bool:
        """Clear one lane; whether the lane has nothing of the sale afterwards."""
        there = await read_sale(self._redis, lane, sale)
        if not there.is_known:
            return True  # cleared before
        if there.definition is None:
            log.error("sale is not cleared: its definition is malformed", sale_id=str(sale.sale_id), lane=lane)
            return False
        # The lane decides about orders, so the lane must know that the sale is over: documents change last.
        if there.definition.state is not LaneSaleState.ENDED and redis_ms < there.definition.ends_at_ms + self._kept_ms:
            log.warning("sale is not cleared: the lane takes orders", sale_id=str(sale.sale_id), lane=lane)
            return False
        reserved = sum(stock.reserved for stock in there.stock if stock is not None)
        if reserved:
            log.warning(
                "sale is not cleared: units are reserved", sale_id=str(sale.sale_id), lane=lane, reserved=reserved
            )
            return False
        if not await self._clear_users(lease, sale, lane):
            return False
        await self._redis.unlink(topology.restock_key(lane, sale.sale_id), topology.transfers_key(lane, sale.sale_id))
        forgotten = await self._lanes.forget(lane, sale.sale_id)
        if forgotten.answer in (ForgetAnswer.NOT_OVER, ForgetAnswer.RESERVED):
            log.warning("sale is not cleared", sale_id=str(sale.sale_id), lane=lane, answer=forgotten.answer.name)
            return False
        log.info("sale cleared from lane", sale_id=str(sale.sale_id), lane=lane, fields=forgotten.fields)
        return True

    async def _clear_users(self, lease: Lease, sale: SaleDefinition, lane: int) -> bool:
        """Remove the users' hashes in small steps; False when the lease was lost meanwhile."""
        cursor, pattern = 0, topology.user_key_pattern(lane, sale.sale_id)
        while True:
            cursor, keys = await self._redis.scan(cursor, match=pattern, count=KEYS_PER_STEP)
            if keys:
                UNLINKED.inc(await self._redis.unlink(*keys))
            if cursor == 0:
                return True
            await asyncio.sleep(STEP_PAUSE_S)
            if not lease.held:
                return False
