"""A sale in Redis: definition and stock in its lanes, and the document for edges. Every step may be repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast
from uuid import UUID

from redis.asyncio import Redis

from backoffice.sales.store import Restock
from backoffice.web.idempotency import KeyReused
from domain import topology
from domain.outcomes import RestockAnswer
from domain.sales import SaleDefinition, Stock, restock_shares, spread
from reservation.documents import SaleDocuments
from reservation.lane import Lanes
from reservation.reading import read_stock
from reservation.verdicts import Judged, read_verdict


class SaleLanes:
    """A sale over all its lanes."""

    def __init__(self, redis: Redis) -> None:
        """Uses the client, does not own it."""
        self._redis = redis
        self._lanes = Lanes(redis)
        self._documents = SaleDocuments(redis)

    async def load(self, definition: SaleDefinition, units: Sequence[int]) -> None:
        """Give each lane the sale and its share of the stock (`units` by SKU index). A lane that knows it keeps it."""
        lanes = len(definition.lanes)
        shares = [spread(count, lanes=lanes) for count in units]
        for place, lane in enumerate(definition.lanes):
            stock = [Stock.fresh(share[place], lanes=lanes) for share in shares]
            await self._lanes.load(lane, definition, stock)

    async def define(self, definition: SaleDefinition) -> None:
        """Give each lane a newer definition; LaneForgot. A lane with this version or a newer one keeps its own."""
        for lane in definition.lanes:
            await self._lanes.define(lane, definition)

    async def restock(self, definition: SaleDefinition, restock: Restock) -> None:
        """Add units, once per key, to each lane its share; LaneForgot, KeyReused.

        A lane without a share is told as well: it must not say sold out any more.
        """
        shares = restock_shares(restock.idempotency_key, restock.quantity, lanes=len(definition.lanes))
        for lane, share in zip(definition.lanes, shares, strict=True):
            answer = await self._lanes.restock(
                lane,
                restock.sale_id,
                sku_index=restock.sku_index,
                quantity=share,
                key=restock.idempotency_key,
            )
            if answer is RestockAnswer.KEY_REUSED:
                raise KeyReused

    async def announce(self, definition: SaleDefinition) -> None:
        """Put the document unless there is a newer one, list the sale, and tell edges to read it."""
        await self._documents.announce(definition)

    async def documents(self, sale_ids: Sequence[UUID]) -> list[tuple[int, int] | None]:
        """(epoch, version) of each sale's document; None for a missing or malformed one."""
        return await self._documents.versions(sale_ids)

    async def listed(self) -> set[UUID]:
        """Ids of the sales that edges find when they start."""
        return await self._documents.listed()

    async def stock(self, definition: SaleDefinition) -> list[Stock]:
        """Counters by SKU index, summed over the lanes; LaneForgot."""
        return await read_stock(self._redis, definition)

    async def refused(self, sale_id: UUID) -> dict[str, int]:
        """Number of refusals at the edges, by problem code."""
        raw = cast(dict[bytes, bytes], await self._redis.hgetall(topology.REFUSED_KEY_PREFIX + str(sale_id)))
        return {code.decode("ascii"): int(count) for code, count in sorted(raw.items())}

    async def verdict(self, sale_id: UUID) -> Judged:
        """The reconciler's verdict, if it is recent."""
        return await read_verdict(self._redis, sale_id)
