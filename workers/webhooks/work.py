"""The lease of webhooks, and the two halves of their work while it is held: intake by topic, and the sender."""

from __future__ import annotations

import asyncio
from typing import Final

from redis.asyncio import Redis

from domain.topology import (
    OUTBOX_PARTITIONS,
    TOPIC_ORDERS,
    TOPIC_PAYMENTS,
    TOPIC_PRODUCTS,
    TOPIC_SALES,
    TOPIC_USERS,
    worker_fence_key,
    worker_lease_key,
)
from runtime.event_log import EventLog, EventLogUnavailable
from runtime.process.service import Service
from runtime.queue import Queue
from runtime.redis.leases import Lease
from runtime.redis.ownership import own
from workers.webhooks import metrics
from workers.webhooks.intake import GROUP, Intake, Wanted
from workers.webhooks.receivers import Receivers
from workers.webhooks.sender import Sender
from workers.webhooks.store import WebhookStore

ROLE: Final = "webhooks"
POOL_SIZE_MAX: Final = 16
MEASURE_S: Final = 15.0
FAMILIES: Final = {
    TOPIC_ORDERS: "order",
    TOPIC_PAYMENTS: "payment",
    TOPIC_USERS: "user",
    TOPIC_PRODUCTS: "product",
    TOPIC_SALES: "sale",
}


class Webhooks:
    """One process at a time works, whatever the number of processes."""

    def __init__(
        self,
        *,
        key: bytes,
        store: WebhookStore,
        receivers: Receivers,
        queue: Queue,
        event_log: EventLog,
        redis: Redis,
        service: Service,
    ) -> None:
        """Everything is passed in and owned elsewhere."""
        self._key = key
        self._store = store
        self._receivers = receivers
        self._queue = queue
        self._event_log = event_log
        self._service = service
        self._wanted = Wanted()
        life_ms = service.settings.lease_ms
        self._lease = Lease(redis, key=worker_lease_key(ROLE), fence_key=worker_fence_key(ROLE), life_ms=life_ms)

    async def run(self) -> None:
        """Work whenever the lease is held, until the process is to stop."""
        await own(self._lease, self._tenure, service=self._service, held=metrics.LEASE_HELD)

    async def measure(self) -> None:
        """Publish the lag of the topics that webhooks want, while this process works."""
        self._service.ready("event log", ok=True, by=(self, "lag"))
        while not self._service.stopping.is_set():
            for topic, family in FAMILIES.items():
                if self._lease.held and family in self._wanted.families:
                    await self._measure(topic)
            await self._service.pause(MEASURE_S)

    async def _measure(self, topic: str) -> None:
        try:
            async with self._event_log.reader(GROUP, topic, range(OUTBOX_PARTITIONS), begin_at_end=True) as reader:
                lags = await reader.lag()
        except EventLogUnavailable as error:
            self._service.ready("event log", ok=False, detail=str(error), by=(self, "lag"))
            return
        metrics.LAG_RECORDS.labels(topic).set(sum(lag.records for lag in lags.values()))
        self._service.ready("event log", ok=True, by=(self, "lag"))

    async def _tenure(self) -> None:
        sender = Sender(
            key=self._key,
            store=self._store,
            receivers=self._receivers,
            queue=self._queue,
            wanted=self._wanted,
            lease=self._lease,
            service=self._service,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(sender.run())
            for topic, family in FAMILIES.items():
                intake = Intake(
                    topic,
                    family,
                    event_log=self._event_log,
                    store=self._store,
                    wanted=self._wanted,
                    stored=sender.wake,
                    lease=self._lease,
                    service=self._service,
                )
                group.create_task(intake.run())
