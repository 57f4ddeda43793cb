"""Watches for a Redis that came back with less than it had, several times a second, and closes what must not sell.

A lane whose sequence is below what the shards, the reconciler or this watch have seen has gone back: all its sales are
closed and its sequence is raised, so that no number is given twice. A sale of an older epoch than the catalogue's is
closed, too. A sale that a lane does not know needs no closing: the scripts answer STALE for it. Rebuilds nothing.

Any number of these may run: every step may be repeated.
"""

from __future__ import annotations

import struct
from typing import cast
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge
from redis.asyncio import Redis

from domain import ids, topology
from domain.sales import LaneSaleState
from domain.topology import Topology
from reservation import scripts
from runtime.process.service import Service
from runtime.redis.scripts import run as run_script
from workers.consuming import TRANSIENT
from workers.recovery.losses import LaneRecovery

EVERY_S = 0.5
SALES_MAX = 1000
NOTED_EVERY_ROUNDS = 2
KEPT_MARGIN_S = 60  # a sale that is just leaving Redis, by another clock than PostgreSQL's, is not missing
_HEAD = struct.Struct(">BI")

SALE_CLOSED = Gauge("flashsale_sale_closed", "1: closed for recovery until `flashsale rebuild`.", ["sale"])
LANES_GONE_BACK = Counter("flashsale_lanes_gone_back", "Times a lane was found below what it had shown.", ["lane"])
log = structlog.get_logger()


class Watch:
    """`look` is one round. `closed` says why each sale that cannot sell is closed, as of the last round."""

    def __init__(self, *, redis: Redis, recovery: LaneRecovery, cluster: Topology, kept_s: int) -> None:
        """Uses the clients, does not own them; `kept_s`: how long after its end a sale is watched."""
        self._redis = redis
        self._recovery = recovery
        self._lanes = tuple(range(cluster.lanes))
        self._kept_s = max(1, kept_s - KEPT_MARGIN_S)
        self._run_id = ""
        self._sequences: dict[int, int] = {}
        self._quiet: dict[int, int] = {}  # sequences of lanes that stood still between the last two looks
        self._rounds = 0
        self.closed: dict[UUID, str] = {}

    async def run(self, service: Service) -> None:
        """Look until the service stops. After an error every lane is looked at closely: Redis may be another one."""
        pause_s = 0.0
        failing = False
        while not await service.pause(pause_s):
            pause_s = EVERY_S
            try:
                await self.look()
            except TRANSIENT as error:
                self._run_id = ""
                service.ready("watch", ok=False, detail=type(error).__name__)
                if not failing:
                    log.warning("watch cannot look", error=f"{type(error).__name__}: {error}")
                failing = True
                continue
            failing = False
            service.ready("watch", ok=True)

    async def look(self) -> None:
        """Compare once. Raises what the servers' clients raise."""
        run_id = str((await self._redis.info("server"))["run_id"])
        sequences = await self._recovery.sequences(self._lanes)
        is_another = run_id != self._run_id
        went_back = [lane for lane in self._lanes if sequences[lane] < self._sequences.get(lane, 0)]
        if is_another or went_back:
            await self._recovery.note_seen(self._sequences)
            for lane in await self._recovery.close_lanes_gone_back(self._lanes, quiet=self._quiet):
                LANES_GONE_BACK.labels(lane).inc()
            sequences = await self._recovery.sequences(self._lanes)
        elif sequences != self._sequences and self._rounds % NOTED_EVERY_ROUNDS == 0:
            await self._recovery.note_seen(sequences)
        self._rounds += 1
        await self._look_at_sales()
        self._quiet = {lane: seq for lane, seq in sequences.items() if self._sequences.get(lane) == seq}
        # Last: a round that broke off is repeated as closely.
        self._run_id, self._sequences = run_id, sequences

    async def _look_at_sales(self) -> None:
        closed: dict[UUID, str] = {}
        missing: set[int] = set()
        for sale_id, epoch, lanes in await self._recovery.published(kept_s=self._kept_s, limit=SALES_MAX):
            for lane in lanes:
                reason = await self._look_at(sale_id, epoch, lane)
                if reason is not None:
                    closed[sale_id] = reason
                    if sale_id not in self.closed:
                        missing.add(lane)
        if missing:
            await self._recovery.close_lanes_gone_back(missing, quiet=self._quiet, missing=missing)
        for sale_id in closed.keys() - self.closed.keys():
            log.error("sale is closed for recovery", sale_id=str(sale_id), reason=closed[sale_id])
            SALE_CLOSED.labels(sale_id).set(1)
        for sale_id in self.closed.keys() - closed.keys():
            log.info("sale is open again", sale_id=str(sale_id))
            SALE_CLOSED.labels(sale_id).set(0)
        self.closed = closed

    async def _look_at(self, sale_id: UUID, epoch: int, lane: int) -> str | None:
        """Why the lane cannot sell, None if it can. Closes what is of an older epoch."""
        state_key = topology.lane_state_key(lane)
        packed = cast(bytes | None, await self._redis.hget(state_key, topology.definition_field(sale_id)))
        if packed is None or len(packed) < _HEAD.size:
            return f"lane {lane} does not know the sale"
        state, epoch_there = _HEAD.unpack_from(packed)
        if epoch_there < epoch and state != LaneSaleState.CLOSED:
            keys = (state_key, topology.lane_stream_key(lane))
            await run_script(self._redis, scripts.CLOSE, keys, (0, ids.short(sale_id), epoch, ""))
            return f"lane {lane} has epoch {epoch_there} of {epoch}"
        return f"lane {lane} has closed the sale" if state == LaneSaleState.CLOSED else None
