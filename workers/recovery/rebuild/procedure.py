"""The rebuild of one sale, from closing to reopening. Every step may be repeated; a run that was killed is run again.

    1 epoch      catalogue: epoch + 1, stage `closed`            compare-and-set, one transaction
    2 close      each lane: `close-2` with this run's mark       nothing of the sale changes from here on
    3 drain      wait: streams relayed, fences through every shard's queue, retries empty
    4 gate       each shard: entries of older epochs that are not stored charge nothing any more; stage `counted`
    5 gaps       the losses of lanes are recorded, so that invariant B shows them
    6 restore    each user's hash and orders, from the shards and the dead letters
    7 reopen     stage `reopening`; stock, restocks, sequence and definition in one script a lane
    8 announce   restocks marked, document, message to edges; stage `done`

The gate makes the counting right, not the waiting: a straggler that arrives after it is stored as rejected. The waiting
keeps accepted orders from becoming stragglers. Other sales of the same lanes continue all the time.
"""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import structlog

from domain.sales import SaleDefinition, Stock
from runtime.dead_letters import DeadLetters
from runtime.queue import Queue
from workers.recovery.losses import LaneRecovery
from workers.recovery.rebuild.catalogue import CatalogueSide, Loss, SaleLook
from workers.recovery.rebuild.draining import Draining
from workers.recovery.rebuild.errors import Healthy, NotPublished, Superseded
from workers.recovery.rebuild.lanes import LanesSide
from workers.recovery.rebuild.records import gaps, lane_stocks
from workers.recovery.rebuild.report import Report
from workers.recovery.rebuild.restoring import Restoring
from workers.recovery.rebuild.shards import ShardsSide

FENCES = 2
PUSHES_MAX = 5

log = structlog.get_logger()


class Rebuild:
    """One run for one sale."""

    def __init__(
        self,
        sale_id: UUID,
        *,
        catalogue: CatalogueSide,
        shards: ShardsSide,
        lanes: LanesSide,
        recovery: LaneRecovery,
        queue: Queue,
        letters: DeadLetters,
        wait_s: float,
        kept_s: int,
    ) -> None:
        """`wait_s`: bound of each wait for another process; `kept_s`: time for which Redis keeps an ended sale."""
        self._sale_id = sale_id
        self._catalogue = catalogue
        self._shards = shards
        self._lanes = lanes
        self._recovery = recovery
        self._letters = letters
        self._draining = Draining(sale_id, shards=shards, lanes=lanes, recovery=recovery, queue=queue, wait_s=wait_s)
        self._kept_ms = kept_s * 1000
        self._report = Report(sale_id)

    async def run(self, *, force: bool) -> Report:
        """Rebuild, or finish an earlier run. Raises RebuildError and the errors of the servers' clients."""
        began = time.monotonic()
        await self._catalogue.refuse_moves()
        look = await self._catalogue.sale()
        await self._close_lost_lanes(look)
        if not await self._is_reopened(look, force=force):
            look = await self._raise_epoch(look)
            # Again: from here on, a mover that announces a group sees this rebuild.
            await self._catalogue.refuse_moves()
            newest = await self._close(look.definition)
            await self._drain(newest)
            await self._close_gate(look.definition)
            await self._reject_waiting(newest)
            await self._settle_losses(look.definition)
            await self._restore(look)
            await self._reopen(look.definition.epoch)
        await self._announce(look.definition.epoch)
        self._report.epoch = look.definition.epoch
        self._report.lost = await self._catalogue.lost(look.definition.lanes)
        self._report.took_s = time.monotonic() - began
        return self._report

    async def _close_lost_lanes(self, look: SaleLook) -> None:
        """Close lanes that went back, unless the sale has left Redis as it should; NotPublished."""
        sale = look.definition
        known = await self._lanes.look(sale)
        missing = [lane for lane, there in known.items() if not there.is_known]
        is_over = await self._lanes.now_ms() >= sale.ends_at_ms + self._kept_ms
        # However late: a reserved order can only end by its lane, and a closed sale only leaves a lane once reopened.
        if is_over and len(missing) == len(known) and not await self._shards.holds():
            raise NotPublished("the sale ended so long ago that it has left Redis: there is nothing to rebuild")
        await self._recovery.close_lanes_gone_back(sale.lanes, missing=missing)

    async def _is_reopened(self, look: SaleLook, *, force: bool) -> bool:
        """Whether all lanes sell in the catalogue's epoch: only the end of an earlier run is missing then. Healthy."""
        sale = look.definition
        lanes = await self._lanes.look(sale)
        if not all(there.sells(sale.epoch) for there in lanes.values()):
            return False
        unfinished = await self._catalogue.stage(sale.epoch) not in (None, "done")
        if not unfinished and not force:
            raise Healthy("every lane has the sale at its epoch: there is nothing to rebuild (--force rebuilds anyway)")
        return unfinished

    async def _raise_epoch(self, look: SaleLook) -> SaleLook:
        """Step 1, unless an earlier run took it and no lane can have sold in its epoch."""
        epoch = look.definition.epoch
        stage = await self._catalogue.stage(epoch)
        if stage in ("closed", "counted"):
            await self._catalogue.note_resumed(epoch, stage)
        else:
            epoch = await self._catalogue.raise_epoch(epoch)
        self._step("epoch", epoch=epoch)
        return await self._catalogue.sale()

    async def _close(self, sale: SaleDefinition) -> dict[int, int]:
        """Step 2; by lane the newest sequence at the closing."""
        floors = await self._recovery.floors(sale.lanes)
        newest = {lane: await self._lanes.close(lane, floor=floors[lane], epoch=sale.epoch) for lane in sale.lanes}
        self._step("closed", lane_seq=newest)
        return newest

    async def _drain(self, newest: dict[int, int]) -> None:
        """Step 3."""
        await self._draining.wait_for_relays(newest)
        self._step("relayed")
        for _ in range(FENCES):
            # The second one also waits for messages that another writer of the shard held during the first.
            await self._draining.fence()
            self._step("fenced")
            self._report.quiet = await self._draining.wait_for_quiet(newest)
        self._step("drained", quiet=self._report.quiet)

    async def _close_gate(self, sale: SaleDefinition) -> None:
        """Step 4."""
        await self._shards.close_gate(sale.epoch, [item.sku for item in sale.items])
        await self._catalogue.set_stage(sale.epoch, "counted")
        self._step("counted")

    async def _reject_waiting(self, newest: dict[int, int]) -> None:
        """Orders that waited for a grant end at the gate."""
        await self._draining.reject_waiting(list(newest))
        if not self._report.quiet:
            # The gate has rejected the orders that were retried for want of a grant.
            self._report.quiet = await self._draining.wait_for_quiet(newest)

    async def _settle_losses(self, sale: SaleDefinition) -> None:
        """Step 5. Only with a quiet queue: otherwise a missing entry may still be under way."""
        if self._report.quiet:
            for loss in await self._catalogue.losses(sale.lanes):
                await self._settle(loss)

    async def _settle(self, loss: Loss) -> None:
        """Record the entries of a lane that no longer exist anywhere."""
        ranges: list[tuple[int, int]] = []
        known = (await self._catalogue.lost((loss.lane,))).get(loss.lane, [])
        async for after, upto, places in self._shards.places(
            loss.lane, after=max(loss.found, loss.verified), upto=loss.floor
        ):
            places |= await self._catalogue.given_up(loss.lane, after=after, upto=upto)
            for first, last in known:
                places.update(range(max(first, after + 1), min(last, upto) + 1))
            ranges += gaps(places, after=after, upto=upto)
        await self._catalogue.note_lost(loss, ranges)
        self._step("settled", lane=loss.lane, lost=sum(last - first + 1 for first, last in ranges))

    async def _restore(self, look: SaleLook) -> None:
        """Step 6."""
        restoring = Restoring(look, shards=self._shards, lanes=self._lanes, letters=self._letters, report=self._report)
        await restoring.run(
            lambda shard: self._step("restored", shard=shard, orders_so_far=sum(self._report.tally.orders.values()))
        )

    async def _reopen(self, epoch: int) -> None:
        """Step 7; Superseded."""
        await self._catalogue.set_stage(epoch, "reopening")
        self._step("reopening")
        look = await self._catalogue.sale()
        sale = self._at_epoch(look.definition, epoch)
        stocks = lane_stocks(sale, look.stock, self._report.tally)
        floors = await self._recovery.floors(sale.lanes)
        # Before the lanes have them: no lane takes orders until it does, and after a crash here the rebuild runs again.
        await self._catalogue.mark_restocked([restock.key for restock in look.restocks])
        await self._lanes.reopen(sale, stocks=stocks, floors=floors, restocks=look.restocks)
        self._report.lane_seq = await self._recovery.sequences(sale.lanes)
        self._report.restocks = len(look.restocks)
        for index, item in enumerate(sale.items):
            total = Stock.total(stocks[lane][index] for lane in sale.lanes)
            self._report.skus.append(
                {
                    "sku": item.sku,
                    "stock": look.stock[index],
                    "available": total.available,
                    "reserved": total.reserved,
                    "paid": total.paid,
                }
            )
        self._step("reopened", version=sale.version)

    async def _announce(self, epoch: int) -> None:
        """Step 8: lanes and document at the catalogue's version, also if staff changed the sale. Superseded."""
        for _ in range(PUSHES_MAX):
            sale = self._at_epoch((await self._catalogue.sale()).definition, epoch)
            await self._lanes.define(sale)
            await self._lanes.announce(sale)
            if (await self._catalogue.sale()).definition.version == sale.version:
                break
        await self._catalogue.set_stage(epoch, "done")
        self._step("done")

    @staticmethod
    def _at_epoch(sale: SaleDefinition, epoch: int) -> SaleDefinition:
        if sale.epoch != epoch:
            raise Superseded("another process raised the sale's epoch")
        return sale

    def _step(self, step: str, **more: Any) -> None:
        log.info("rebuild", step=step, sale_id=str(self._sale_id), **more)
