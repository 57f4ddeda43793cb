"""What staff do with sales, over catalogue and Redis. The catalogue leads: Redis follows, and can always be made to follow again.

Publishing, each step of which may be repeated:

    1 catalogue: stage `loading`, loaded_epoch, lanes, stock ledger       one transaction
    2 each lane: `load-1`                                                 never overwrites
    3 catalogue: stage `published`
    4 document, list of sales, message to edges

Until 3 no edge knows the sale, so a lane that lost it between 2 and 3 may be loaded again; after 3 it is only ever rebuilt.
A crash anywhere heals when publishing is repeated, or when the synchroniser comes by.

Changes of a published sale: catalogue (compare-and-set on the version), then `define-1` on each lane, then the document.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import structlog

from backoffice.sales.lanes import LaneForgot, RestockClash, SaleLanes
from backoffice.sales.model import NotNow, Sale, Stage, restockable, unix_ms
from backoffice.sales.store import Restock, Sales
from backoffice.stores import Stores
from domain.sales import Stock

_ATTEMPTS_MAX = 5  # against others who change the same sale at the same time

log = structlog.get_logger(__name__)


class SaleMissing(Exception):
    """There is no such sale."""


class SkuMissing(Exception):
    """The sale does not have the SKU."""


class KeyClash(Exception):
    """The idempotency key of a restock was used with other numbers."""


class SaleService:
    """Changes of sales. `stores.now_ms` is the only clock."""

    def __init__(self, stores: Stores, sales: Sales, lanes: SaleLanes, *, kept: timedelta) -> None:
        """Uses them, owns nothing; `kept`: how long after its end Redis has a sale."""
        self._stores = stores
        self._sales = sales
        self._lanes = lanes
        self.kept = kept

    async def get(self, sale_id: UUID) -> Sale:
        """The sale; SaleMissing."""
        sale = await self._sales.get(sale_id)
        if sale is None:
            raise SaleMissing
        return sale

    async def publish(self, sale_id: UUID) -> Sale:
        """Bring a draft before buyers, finish what a crash interrupted, or confirm what is published.

        NotNow for a draft whose window is over, ProductsMissing for products that cannot be sold (any more), LaneForgot for
        a published sale that a lane has lost.
        """
        for _ in range(_ATTEMPTS_MAX):
            sale = await self.get(sale_id)
            if sale.stage is Stage.DRAFT:
                if unix_ms(sale.ends_at) <= await self._stores.now_ms():
                    raise NotNow("The sale's window is over: move it first")
                await self.start_loading(sale)
            elif sale.stage is Stage.LOADING:
                await self.load(sale)
                await self._sales.mark_published(sale_id)
            else:
                await self.push(sale)
                return sale
        raise NotNow("The sale is being changed by others, try again")

    async def start_loading(self, sale: Sale) -> bool:
        """Step 1; False when the draft was changed, or is loading already."""
        lanes = self._stores.topology.lanes_of_sale(sale.id, count=sale.lane_count)
        return await self._sales.start_loading(sale, lanes)

    async def load(self, sale: Sale) -> None:
        """Step 2."""
        assert sale.stage is Stage.LOADING, "a published sale is never loaded again"
        await self._lanes.load(sale.definition, tuple(item.stock for item in sale.items))

    async def push(self, sale: Sale) -> None:
        """Step 4, and what every later change ends with: lanes first, so that no edge believes more than its lane.

        Nothing for a sale that has left Redis: it does not come back.
        """
        if not sale.is_kept(await self._stores.now_ms(), kept=self.kept):
            return
        definition = sale.definition
        try:
            await self._lanes.define(definition)
        except LaneForgot:
            # Edges shall know the sale all the same: they then say that it is unavailable, not that there is none.
            await self._lanes.announce(definition)
            raise
        await self._lanes.announce(definition)

    async def stock(self, sale: Sale) -> list[Stock]:
        """Counters by SKU index: of a published sale from its lanes, once they have forgotten it from the shards. LaneForgot.

        What the shards count as sold is paid by then: lanes forget a sale when nothing of it is reserved. Units that were
        written off for orders that had to be rejected count as available then.
        """
        if sale.stage is not Stage.PUBLISHED:
            return [Stock.fresh(item.stock) for item in sale.items]
        try:
            return await self._lanes.stock(sale.definition)
        except LaneForgot:
            if sale.is_kept(await self._stores.now_ms(), kept=self.kept):
                raise
        restocked = await self._sales.restocked_units(sale.id)
        sold = await self._sales.sold_units(sale.id)
        return [
            replace(
                Stock.fresh(item.stock + restocked.get(index, 0) - sold.get(item.sku, 0)), paid=sold.get(item.sku, 0)
            )
            for index, item in enumerate(sale.items)
        ]

    async def change(self, sale_id: UUID, rule: Callable[[Sale, int], Sale]) -> Sale:
        """Apply a rule of `sales.model` to a published sale; the sale as it is then. NotNow, SaleMissing, LaneForgot.

        When Redis cannot be reached the change is in the catalogue all the same: repeat it, or the synchroniser pushes it.
        """
        for _ in range(_ATTEMPTS_MAX):
            sale = await self.get(sale_id)
            wanted = rule(sale, await self._stores.now_ms())
            if wanted == sale or await self._sales.change_published(wanted):
                sale = sale if wanted == sale else await self.get(sale_id)
                await self.push(sale)
                return sale
        raise NotNow("The sale is being changed by others, try again")

    async def restock(self, sale_id: UUID, *, sku: str, quantity: int, key: str, created_by: UUID) -> tuple[Sale, bool]:
        """Add units once per key: ledger and record in one transaction, then the lane under the same key.

        The sale, and whether the key's units had been added before. A key that was used before is answered as then,
        whatever the sale's state is now. NotNow, SaleMissing, SkuMissing, KeyReused (of the store), StockTooHigh, LaneForgot.
        """
        sale = await self.get(sale_id)
        index = sale.index_of(sku)
        if index is None:
            raise SkuMissing
        known = await self._sales.find_restock(sale_id, key)
        if known is None:
            restockable(sale, await self._stores.now_ms())
        restock = Restock(sale_id, key, index, quantity)
        added = await self._sales.add_restock(restock, sku=sku, created_by=created_by)
        # A lane that has the units is not asked again: it may have forgotten the sale, long after its end, or lost it.
        if known is None or not known.applied:
            await self.apply_restock(sale, restock)
        return sale, not added

    async def apply_restock(self, sale: Sale, restock: Restock) -> None:
        """Bring a committed restock to the lane; may be repeated."""
        try:
            await self._lanes.restock(sale.definition, restock)
        except RestockClash as error:
            # The catalogue's row is the truth; a lane that says otherwise was written to by somebody else.
            log.error("lane applied another restock under this key", sale_id=str(sale.id), key=restock.idempotency_key)
            raise KeyClash from error
        await self._sales.mark_restocked(restock)
