"""Finishes publications, changes and restocks that a crash interrupted, and puts documents that Redis lost.

Any number of processes may run it: every step is idempotent and compare-and-set. Does not rebuild a lane that lost a
sale.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import structlog

from backoffice.sales.lanes import SaleLanes
from backoffice.sales.model import Stage
from backoffice.sales.service import SaleService
from backoffice.sales.store import LiveSale, Sales
from backoffice.stores import AWAY
from backoffice.web.idempotency import KeyReused
from reservation.lane import LaneForgot
from runtime.process.supervision import TaskSupervisor
from runtime.process.tasks import until_tick

PERIOD_S = 2.0
SETTLED = timedelta(seconds=10)  # no request works longer on a sale
SALES_MAX = 1000  # live sales looked at in one round
RESTOCKS_MAX = 100  # in one round

log = structlog.get_logger(__name__)


class Synchroniser:
    """One pass is `step`; `run` makes one every `PERIOD_S`."""

    def __init__(self, sales: Sales, lanes: SaleLanes, service: SaleService, repaired: Callable[[int], None]) -> None:
        """Uses them, owns nothing; `repaired` gets the number of repairs of each round."""
        self._sales = sales
        self._lanes = lanes
        self._service = service
        self._repaired = repaired
        self._failing = False

    async def run(self, background: TaskSupervisor) -> None:
        """Repeat `step` until cancelled. An unavailable server is logged once and asked again in the next round.

        Rounds that keep failing by another error are a problem of the process.
        """
        with background.rounds("synchroniser") as beat:
            while True:
                try:
                    self._repaired(await self.step())
                except AWAY as error:
                    if not self._failing:
                        log.warning("synchroniser cannot reach a server", error=type(error).__name__)
                    self._failing = True
                    beat()
                except Exception:
                    log.exception("synchroniser failed")
                    self._failing = True
                else:
                    self._failing = False
                    beat()
                await asyncio.sleep(until_tick(PERIOD_S))

    async def step(self, *, settled: timedelta = SETTLED) -> int:
        """One round over sales and restocks unchanged for `settled`; the number of repairs."""
        repaired = 0
        live = await self._sales.live(settled=settled, kept=self._service.kept, limit=SALES_MAX)
        published = [sale for sale in live if sale.stage == Stage.PUBLISHED]
        for sale in live:
            if sale.stage == Stage.LOADING and sale.settled:
                await self._service.publish(sale.id)
                repaired += 1
        for sale in await self._behind(published):
            try:
                await self._service.push(await self._service.get(sale.id))
                repaired += 1
            except LaneForgot as error:
                log.error("lane lost a sale: rebuild the sale", sale_id=str(error.sale_id), lane=error.lane)
        for restock in await self._sales.unapplied_restocks(settled=settled, limit=RESTOCKS_MAX):
            try:
                await self._service.apply_restock(await self._service.get(restock.sale_id), restock)
                repaired += 1
            except (LaneForgot, KeyReused) as error:
                log.error("restock not applied", sale_id=str(restock.sale_id), error=type(error).__name__)
        return repaired

    async def _behind(self, published: list[LiveSale]) -> list[LiveSale]:
        """Sales with a missing document or one older than the catalogue, and sales that are not listed."""
        if not published:
            return []
        documents = await self._lanes.documents([sale.id for sale in published])
        listed = await self._lanes.listed()
        return [
            sale
            for sale, known in zip(published, documents, strict=True)
            if known is None or known < (sale.epoch, sale.version) or sale.id not in listed
        ]
