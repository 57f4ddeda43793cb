"""Which sales are rebalanced when, and by this process: each sale over many lanes has one owner at a time, by lease.

Follows the documents of sales. Without a sale over many lanes that is open it asks Redis for nothing: it wakes for a
changed document, and for the start of a sale. An open sale has a round every `PERIOD_S` while its stock moves, every
`QUIET_S` while it does not. A sale that is not open has rounds until none of its units is in transit.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from uuid import UUID

import structlog
from prometheus_client import Gauge
from redis.asyncio import Redis
from redis.exceptions import RedisError

from domain import ids, topology
from domain.sales import LaneSaleState, SaleDefinition
from reservation.documents import Announcement, SaleDocuments
from runtime.process.backoff import Backoff
from runtime.process.service import Service
from runtime.process.tasks import cancel
from runtime.redis.clock import now_ms
from runtime.redis.leases import Lease
from workers.consuming import TRANSIENT
from workers.rebalancer.rebalancing import Rebalancing

NAME: Final = "rebalancer"
CHANNEL: Final = "rebalancer channel"
PERIOD_S: Final = 0.1
QUIET_S: Final = 0.5
# Rounds of a sale take at most this share of the time: with many SKUs and lanes they become rarer.
SHARE_MAX: Final = 0.1
EARLY_S: Final = 1.0  # before a sale starts: by this process's clock it may have begun
WAKE_S: Final = 5.0  # shows that the loop is alive; asks nothing
PAUSE_S_MAX: Final = 5.0
ASKED_PER_LIFE: Final = 4
NEVER: Final = float("inf")
FAILURES: Final[tuple[type[Exception], ...]] = (*TRANSIENT, ValueError)  # malformed records: of this sale alone

OWNED = Gauge("flashsale_rebalancer_sales", "Sales over many lanes whose units this process moves.")
IN_TRANSIT = Gauge("flashsale_rebalancer_units_in_transit", "Units that were in transit after the last round.")

log = structlog.get_logger()


@dataclass(slots=True)
class _Kept:
    """A sale over many lanes, and when its next round is due (monotonic)."""

    work: Rebalancing
    lease: Lease
    due_at: float = 0.0
    backoff: Backoff = field(default_factory=lambda: Backoff(longest_s=PAUSE_S_MAX))


class Director:
    """`start` starts its two tasks: rounds, and the channel of changed sales, which ends with the rounds."""

    def __init__(self, redis: Redis, *, lease_ms: int) -> None:
        """Uses the client, does not own it."""
        self._redis = redis
        self._documents = SaleDocuments(redis)
        self._lease_ms = lease_ms
        self._sales: dict[UUID, _Kept] = {}
        self._woken = asyncio.Event()
        self._offset_ms = 0.0  # Redis time less that of this process

    def start(self, service: Service) -> None:
        """Start both tasks under the service's watch."""
        channel = self._documents.channel(opened=self._read_all, changed=self._changed)
        service.background.start(NAME, partial(self._run, service))
        service.background.start(CHANNEL, channel.follow)

    async def _read_all(self) -> None:
        self._offset_ms = await now_ms(self._redis) - time.time() * 1000
        listed = sorted(await self._documents.listed())
        known = [sale for sale in await self._documents.read(listed) if sale is not None]
        for sale in known:
            self._take(sale)
        for sale_id in self._sales.keys() - {sale.sale_id for sale in known}:
            self._sales[sale_id].due_at = 0.0
        self._woken.set()

    async def _changed(self, announcement: Announcement) -> None:
        for sale in await self._documents.read([announcement.sale_id]):
            if sale is not None:
                self._offset_ms = await now_ms(self._redis) - time.time() * 1000
                self._take(sale)
        self._woken.set()

    def _take(self, sale: SaleDefinition) -> None:
        if len(sale.lanes) == 1:
            return
        kept = self._sales.get(sale.sale_id)
        if kept is None:
            role = f"{NAME}-{ids.short(sale.sale_id)}"
            key, fence_key = topology.worker_lease_key(role), topology.worker_fence_key(role)
            lease = Lease(self._redis, key=key, fence_key=fence_key, life_ms=self._lease_ms)
            self._sales[sale.sale_id] = _Kept(Rebalancing(self._redis, sale), lease)
        elif (kept.work.sale.epoch, kept.work.sale.version) < (sale.epoch, sale.version):
            kept.work, kept.due_at = Rebalancing(self._redis, sale), 0.0

    async def _run(self, service: Service) -> None:
        """Have rounds of the sales that are due until the service stops; then give the leases back."""
        service.ready(NAME, ok=True)
        with service.background.rounds(NAME) as beat:
            try:
                while not service.stopping.is_set():
                    beat()
                    await self._sleep(service)
                    for kept in [kept for kept in self._sales.values() if kept.due_at <= time.monotonic()]:
                        await self._attend(kept, service)
                        beat()
                    owned = [kept for kept in self._sales.values() if kept.lease.held]
                    OWNED.set(len(owned))
                    IN_TRANSIT.set(sum(kept.work.in_transit for kept in owned))
            finally:
                for kept in self._sales.values():
                    await kept.lease.release()
        await service.background.cancel(CHANNEL)  # it never returns by itself

    async def _sleep(self, service: Service) -> None:
        """Until a sale is due, a document changed, or the service stops."""
        due_at = min((kept.due_at for kept in self._sales.values()), default=NEVER)
        rest_s = min(max(0.0, due_at - time.monotonic()), WAKE_S)
        stopping = asyncio.ensure_future(service.stopping.wait())
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait((stopping, woken), timeout=rest_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel(stopping, woken)
        self._woken.clear()

    async def _attend(self, kept: _Kept, service: Service) -> None:
        """One round of a sale, if this process owns it or can take it."""
        sale, began = kept.work.sale, time.monotonic()
        try:
            if not kept.lease.held and not await kept.lease.acquire():
                # Another process moves the units. It may end at any time, also with units in transit.
                kept.due_at = began + self._lease_ms / 1000 / ASKED_PER_LIFE if self._is_live(sale) else NEVER
                return
            changed = await kept.work.step()
        except FAILURES as error:
            words = f"{type(error).__name__}: {error}"
            log.warning("round of a sale failed", sale_id=str(sale.sale_id), error=words)
            service.ready(NAME, ok=not isinstance(error, (RedisError, OSError)), detail=words)
            kept.due_at = time.monotonic() + kept.backoff.next_s()
            return
        kept.backoff.reset()
        service.ready(NAME, ok=True)
        now = time.monotonic()
        if self._is_live(sale) or changed or kept.work.in_transit:
            rest_s = PERIOD_S if changed else QUIET_S
            kept.due_at = began + max(rest_s, (now - began) / SHARE_MAX)
            return
        await kept.lease.release()
        starts_in_s = (sale.starts_at_ms - self._now_ms()) / 1000 - EARLY_S
        if sale.state is LaneSaleState.RUNNING and starts_in_s > 0:
            kept.due_at = now + starts_in_s
        elif self._now_ms() >= sale.ends_at_ms:
            del self._sales[sale.sale_id]
        else:
            kept.due_at = NEVER  # until staff change the sale

    def _is_live(self, sale: SaleDefinition) -> bool:
        """Whether buyers can order, as far as this process's clock tells."""
        now = self._now_ms()
        early = now + EARLY_S * 1000 >= sale.starts_at_ms
        return sale.state is LaneSaleState.RUNNING and early and now < sale.ends_at_ms

    def _now_ms(self) -> float:
        return time.time() * 1000 + self._offset_ms
