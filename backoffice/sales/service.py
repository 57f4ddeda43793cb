"""Changes of sales over catalogue and Redis. The catalogue is the source of truth; Redis is brought up to date from it.

Publishing. Each step may be repeated:

    1 catalogue: stage `loading`, loaded_epoch, lanes, stock ledger       one transaction
    2 each lane: `load-1`                                                 never overwrites
    3 catalogue: stage `published`
    4 document, list of sales, message to edges

Until step 3 no edge knows the sale, so a lane that lost it between 2 and 3 may be loaded again; after 3 it is only
rebuilt. After a crash at any step, a repeated request or the next round of the synchroniser completes the publishing.

Changes of a published sale: catalogue (one after the other, under the lock of its row), then `define-1` on each lane,
then the document.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from uuid import UUID

import structlog

from backoffice.sales import model
from backoffice.sales.lanes import SaleLanes
from backoffice.sales.model import NewSale, Sale, SaleChanges, SaleReport, SaleStateConflict, Stage
from backoffice.sales.store import Restock, Sales, StockTooHigh
from backoffice.stores import Stores
from backoffice.web.idempotency import KeyReused
from domain.sales import Stock
from reservation.lane import LaneForgot
from runtime.audit import Action

_ATTEMPTS_MAX = 5  # against concurrent changes of the same sale
_CONTENDED = "Other requests are changing the sale. Repeat the request"

log = structlog.get_logger(__name__)


class SaleMissing(Exception):
    """The sale does not exist."""


class SkuMissing(Exception):
    """The sale does not have the SKU."""


class SaleService:
    """Reads and changes sales. The Redis clock is the only clock."""

    def __init__(self, stores: Stores, sales: Sales, lanes: SaleLanes, *, kept: timedelta) -> None:
        """Uses them, owns nothing; Redis keeps a sale until `kept` after its end."""
        self._stores = stores
        self._sales = sales
        self._lanes = lanes
        self.kept = kept

    async def now_ms(self) -> int:
        """The time by which the state of a sale is judged."""
        return await self._stores.now_ms()

    async def get(self, sale_id: UUID) -> Sale:
        """The sale; SaleMissing."""
        sale = await self._sales.get(sale_id)
        if sale is None:
            raise SaleMissing
        return sale

    async def page(self, *, before: UUID | None, limit: int) -> list[Sale]:
        """Sales older than `before`, newest first."""
        return await self._sales.page(before=before, limit=limit)

    async def create(self, new: NewSale) -> tuple[Sale, bool]:
        """Create a draft; the sale, and whether its idempotency key had created it before.

        WindowInvalid, LanesTooMany, ItemsNotSellable, KeyReused.
        """
        # A repeated request succeeds even if its window is over by now.
        if new.idempotency_key is None or not await self._sales.was_created(new):
            model.check_window(new.starts_at, new.ends_at, await self.now_ms(), named=("starts_at", "ends_at"))
        lanes_max = self._stores.topology.lanes
        count = model.count_of_lanes(new.lanes, new.items, expected_buyers=new.expected_buyers, lanes_max=lanes_max)
        sale_id, replayed = await self._sales.create(new, lane_count=count)
        return await self.get(sale_id), replayed

    async def update(self, sale_id: UUID, changes: SaleChanges) -> Sale:
        """Change any member of a draft, or name and window of a published sale.

        SaleMissing, SaleStateConflict, WindowInvalid, LanesTooMany, ItemsNotSellable, LaneForgot.
        """
        lanes_max = self._stores.topology.lanes
        for _ in range(2):  # a draft may be published meanwhile; then the rules of published sales apply
            sale = await self.get(sale_id)
            if sale.stage is not Stage.DRAFT:
                rule = partial(model.changed, changes=changes)
                return await self.change(sale_id, rule, Action.SALE_CHANGE)
            changed = model.changed_draft(sale, await self.now_ms(), changes=changes, lanes_max=lanes_max)
            if await self._sales.change_draft(changed):
                return await self.get(sale_id)
        raise SaleStateConflict(_CONTENDED)

    async def delete(self, sale_id: UUID) -> None:
        """Delete a draft. SaleMissing; SaleStateConflict for a sale that was published."""
        sale = await self._sales.delete_draft(sale_id)
        if sale is None:
            raise SaleMissing
        if sale.stage is not Stage.DRAFT:
            raise SaleStateConflict("Only a draft can be deleted. End the sale instead")

    async def publish(self, sale_id: UUID) -> Sale:
        """Publish a draft, complete an interrupted publishing, or confirm a published sale.

        SaleMissing; SaleStateConflict for a draft after the end of its window; ItemsNotSellable; LaneForgot for a
        published sale that a lane has lost.
        """
        for _ in range(_ATTEMPTS_MAX):
            sale = await self.get(sale_id)
            if sale.stage is Stage.DRAFT:
                if model.unix_ms(sale.ends_at) <= await self.now_ms():
                    raise SaleStateConflict("The window of the sale is over. Move it, then publish")
                await self.start_loading(sale)
            elif sale.stage is Stage.LOADING:
                await self.load(sale)
                await self._sales.mark_published(sale_id)
            else:
                await self.push(sale)
                return sale
        raise SaleStateConflict(_CONTENDED)

    async def start_loading(self, sale: Sale) -> bool:
        """Step 1; False if the draft has changed or is loading already."""
        lanes = self._stores.topology.lanes_of_sale(sale.id, count=sale.lane_count)
        return await self._sales.start_loading(sale, lanes)

    async def load(self, sale: Sale) -> None:
        """Step 2."""
        assert sale.stage is Stage.LOADING, "a published sale is never loaded again"
        await self._lanes.load(sale.definition, tuple(item.stock for item in sale.items))

    async def push(self, sale: Sale) -> None:
        """Step 4, and the last step of every later change: lanes first, so that no edge is ahead of its lane.

        Does nothing for a sale that has left Redis: it does not come back. LaneForgot.
        """
        if not sale.is_kept(await self.now_ms(), kept=self.kept):
            return
        definition = sale.definition
        try:
            await self._lanes.define(definition)
        except LaneForgot:
            # Edges must know the sale all the same: they answer that it is unavailable, not that it does not exist.
            await self._lanes.announce(definition)
            raise
        await self._lanes.announce(definition)

    async def change(self, sale_id: UUID, rule: Callable[[Sale, int], Sale], action: Action) -> Sale:
        """Apply a rule of `sales.model`; the sale afterwards. SaleStateConflict, SaleMissing, LaneForgot.

        If Redis cannot be reached, the catalogue has the change all the same: a repeat or the synchroniser pushes it.
        """
        now_ms = await self.now_ms()
        sale = await self._sales.change_published(sale_id, lambda sale: rule(sale, now_ms), action)
        if sale is None:
            raise SaleMissing
        await self.push(sale)
        return sale

    async def restock(self, sale_id: UUID, *, sku: str, quantity: int, key: str, created_by: UUID) -> tuple[Sale, bool]:
        """Add units once per key: ledger and record in one transaction, then the lane under the same key.

        Returns the sale, and whether the key had added its units before; a repeat succeeds in any state of the sale.
        SaleStateConflict, SaleMissing, SkuMissing, KeyReused, StockTooHigh, LaneForgot.
        """
        sale = await self.get(sale_id)
        index = sale.index_of(sku)
        if index is None:
            raise SkuMissing
        known = await self._sales.find_restock(sale_id, key)
        if known is None:
            model.check_restockable(sale, await self.now_ms())
        restock = Restock(sale_id, key, index, quantity)
        added = await self._sales.add_restock(restock, sku=sku, created_by=created_by)
        # A lane that has the units is not asked again: it may have forgotten or lost the sale since.
        if known is None or not known.applied:
            await self.apply_restock(sale, restock)
        return sale, not added

    async def may_restock(self, sale_id: UUID) -> bool:
        """Whether the sale takes units now. SaleMissing."""
        try:
            model.check_restockable(await self.get(sale_id), await self.now_ms())
        except (model.SaleStateConflict, SaleMissing):
            return False
        return True

    async def restock_once(self, sale_id: UUID, *, sku: str, quantity: int, key: str, created_by: UUID) -> bool:
        """`restock` for units that come back; False when the sale takes none any more, or its ledger is full.

        The other exceptions of `restock` pass.
        """
        try:
            await self.restock(sale_id, sku=sku, quantity=quantity, key=key, created_by=created_by)
        except (model.SaleStateConflict, StockTooHigh):
            return False
        return True

    async def apply_restock(self, sale: Sale, restock: Restock) -> None:
        """Bring a committed restock to the lane; may be repeated. LaneForgot, KeyReused."""
        try:
            await self._lanes.restock(sale.definition, restock)
        except KeyReused:
            # The catalogue row is the truth; another writer has changed the lane.
            log.error("lane applied another restock under this key", sale_id=str(sale.id), key=restock.idempotency_key)
            raise
        await self._sales.mark_restocked(restock)

    async def report(self, sale_id: UUID) -> SaleReport:
        """The numbers of a sale. SaleMissing, LaneForgot."""
        sale = await self.get(sale_id)
        return SaleReport(
            sale=sale,
            stock=await self._stock(sale),
            restocked=await self._sales.restocked_units(sale_id),
            refused=await self._lanes.refused(sale_id),
            verdict=await self._lanes.verdict(sale_id),
        )

    async def _stock(self, sale: Sale) -> list[Stock]:
        """Counters by SKU index: from the lanes, or from the shards after a sale has left Redis. LaneForgot.

        In the shards, sold units are paid units: a lane forgets a sale only when no unit is reserved. Units written off
        for rejected orders count as available.
        """
        if sale.stage is not Stage.PUBLISHED:
            return [Stock.fresh(item.stock) for item in sale.items]
        try:
            return await self._lanes.stock(sale.definition)
        except LaneForgot:
            if sale.is_kept(await self.now_ms(), kept=self.kept):
                raise
        restocked = await self._sales.restocked_units(sale.id)
        sold = await self._sales.sold_units(sale.id)
        return [
            replace(
                Stock.fresh(item.stock + restocked.get(index, 0) - sold.get(item.sku, 0)), paid=sold.get(item.sku, 0)
            )
            for index, item in enumerate(sale.items)
        ]
