"""Detects a Redis that came back with less data, several times a second, and closes the sales concerned.

A lane with a sequence below the newest recorded by the shards, the reconciler or this watch has gone back: all its
sales are closed and its sequence is raised, so that no number is given twice. A sale that a lane has at an older epoch
than the catalogue is closed as well. A sale that a lane does not know needs no closing, since the scripts answer STALE
for it. Rebuilds nothing.

Any number of watches may run, because every step may be repeated. There is no lease: its keys are in the Redis that is
being watched, and closing must not wait until a lease of a dead holder runs out.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge
from redis.asyncio import Redis

from domain.sales import LaneSaleState
from domain.topology import Topology
from reservation.lane import Lanes
from reservation.reading import LaneSale, read_lane, read_run
from runtime.process.service import Service
from workers.consuming import TRANSIENT
from workers.recovery.losses import LaneRecovery, PublishedSale

EVERY_S = 0.5
ROUND_S_MAX = 10.0  # far more than a round takes; a lane that went back sells meanwhile
SALES_PAGE = 1000
SALES_MAX = 20_000  # a round looks at so many sales; those that end first are left out, and the watch is not ready
COMPARE_EVERY_ROUNDS = 10  # with the records of all shards, while one of them is silent
NOTED_EVERY_ROUNDS = 2
KEPT_MARGIN_S = 60  # a sale that is just leaving Redis, by another clock than PostgreSQL's, is not missing

SALE_CLOSED = Gauge("flashsale_sale_closed", "1: closed for recovery until `flashsale rebuild`.", ["sale"])
LANES_GONE_BACK = Counter("flashsale_lanes_gone_back", "Times a lane was found below its recorded sequence.", ["lane"])
log = structlog.get_logger()


class Watch:
    """`look` is one round. `closed` has, for each sale that cannot sell, the reason found in the last round."""

    def __init__(self, *, redis: Redis, recovery: LaneRecovery, cluster: Topology, kept_s: int) -> None:
        """Uses the clients, does not own them; `kept_s`: time after its end for which a sale is watched."""
        self._redis = redis
        self._gateway = Lanes(redis)
        self._recovery = recovery
        self._lanes = tuple(range(cluster.lanes))
        self._kept_s = max(1, kept_s - KEPT_MARGIN_S)
        self._run_id = ""
        self._sequences: dict[int, int] = {}
        self._noted: dict[int, int] = {}
        self._quiet: dict[int, int] = {}  # sequences of lanes that stood still between the last two rounds
        self._damaged: set[int] = set()  # lanes whose sequence cannot be read
        self._rounds = 0
        self._compare_at_round = 0
        self.problem: str | None = None  # what the last round could not look at
        self.closed: dict[UUID, str] = {}

    async def run(self, service: Service) -> None:
        """Look until the service stops. After an error every lane is compared again: Redis may be another one."""
        failing = False
        with service.background.rounds("watch", s_max=ROUND_S_MAX) as beat:
            while not service.stopping.is_set():
                beat()
                try:
                    await self.look()
                except TRANSIENT as error:
                    self._run_id = ""
                    service.ready("watch", ok=False, detail=type(error).__name__)
                    if not failing:
                        log.warning("watch cannot reach a server", error=f"{type(error).__name__}: {error}")
                    failing = True
                else:
                    failing = False
                    service.ready("watch", self.problem is None, self.problem or "")
                await service.tick(EVERY_S)

    async def look(self) -> None:
        """One round. Raises the errors of the servers' clients."""
        run_id, sequences = await read_run(self._redis, self._lanes)
        # A shard that was silent may have recorded more: compare again.
        is_due = bool(self._recovery.silent_shards) and self._rounds >= self._compare_at_round
        is_another = run_id != self._run_id or is_due
        went_back = [lane for lane in sequences if sequences[lane] < self._sequences.get(lane, 0)]
        if is_another or went_back:
            await self._recovery.note_seen(self._sequences)
            self._compare_at_round = self._rounds + COMPARE_EVERY_ROUNDS
            for lane in await self._recovery.close_lanes_gone_back(
                self._lanes, quiet=self._quiet, seen=self._sequences
            ):
                LANES_GONE_BACK.labels(lane).inc()
            sequences = await self._recovery.intact_sequences(self._lanes)
        elif sequences != self._noted and self._rounds % NOTED_EVERY_ROUNDS == 0:
            await self._recovery.note_seen(sequences)
            self._noted = sequences
        self._rounds += 1
        self._note_damage(set(self._lanes) - sequences.keys())
        await self._look_at_sales()
        self._quiet = {lane: seq for lane, seq in sequences.items() if self._sequences.get(lane) == seq}
        # Last, so that a round that broke off is repeated with the same comparison.
        # A damaged lane keeps its last one: after its repair it must not be below.
        self._run_id, self._sequences = run_id, self._sequences | sequences

    def _note_damage(self, damaged: set[int]) -> None:
        for lane in damaged - self._damaged:
            log.error("lane has a damaged sequence: its sales are not watched", lane=lane)
        for lane in self._damaged - damaged:
            log.info("lane has an intact sequence again", lane=lane)
        self._damaged = damaged

    async def _look_at_sales(self) -> None:
        closed: dict[UUID, str] = {}
        missing: set[int] = set()
        count = 0
        async for sales in self._recovery.published(kept_s=self._kept_s, page=SALES_PAGE):
            if count >= SALES_MAX:
                break
            count += len(sales)
            await self._look_at_page(sales, closed, missing)
        if missing:
            await self._recovery.close_lanes_gone_back(
                missing, quiet=self._quiet, missing=missing, seen=self._sequences
            )
        silent = ", ".join(str(shard) for shard in sorted(self._recovery.silent_shards))
        self.problem = f"no record of shard {silent}" if silent else None
        if self._damaged:
            lanes = ", ".join(str(lane) for lane in sorted(self._damaged))
            self.problem = f"damaged sequence of lane {lanes}"
        if count >= SALES_MAX:
            self.problem = f"more than {SALES_MAX} published sales: some are not watched"
        self._show(closed)

    async def _look_at_page(self, sales: Sequence[PublishedSale], closed: dict[UUID, str], missing: set[int]) -> None:
        for lane in self._lanes:
            if lane in self._damaged:
                continue
            listed = [sale for sale in sales if lane in sale.lanes]
            if not listed:
                continue
            state = await read_lane(self._redis, lane, {sale.sale_id: 0 for sale in listed})
            for sale in listed:
                problem = await self._look_at(sale, state.sales[sale.sale_id])
                if problem is not None:
                    closed.setdefault(sale.sale_id, problem)
                    # A lane that closed the sale for a rebuild has its data: it has lost nothing.
                    if sale.sale_id not in self.closed and not state.sales[sale.sale_id].is_known:
                        missing.add(lane)

    async def _look_at(self, sale: PublishedSale, there: LaneSale) -> str | None:
        """Why the lane cannot sell, None if it can. Closes a sale of an older epoch."""
        known = there.definition
        if known is not None and known.epoch < sale.epoch and known.state is not LaneSaleState.CLOSED:
            await self._gateway.close_sale(there.lane, sale.sale_id, epoch=sale.epoch)
        return there.problem(sale.epoch)

    def _show(self, closed: dict[UUID, str]) -> None:
        for sale_id in closed.keys() - self.closed.keys():
            log.error("sale is closed for recovery, rebuild it", sale_id=str(sale_id), reason=closed[sale_id])
            SALE_CLOSED.labels(sale_id).set(1)
        for sale_id in self.closed.keys() - closed.keys():
            log.info("sale is open again", sale_id=str(sale_id))
            SALE_CLOSED.labels(sale_id).set(0)
        self.closed = closed
