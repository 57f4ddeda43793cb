"""The parts of a worker that take payments: built, opened and closed together, with connections of their own.

Neither a crowd that buys or reads, nor a shard that is away, takes the connections of the provider's events.
"""

from __future__ import annotations

import asyncio
from typing import Final

from edge.clock import RedisClock
from edge.orders import Orders
from edge.payments import Payments
from edge.settlements import Settlements
from payments.ledger import PaymentLedger
from payments.providers import open_provider
from payments.settling import Settling
from reservation.lane import Lanes
from runtime.postgres.pool import POLL_UNCHECKED_S, postgres_pool
from runtime.process.settings import Settings
from runtime.redis.client import redis_client

POSTGRES_CONNECTIONS_MAX: Final = 1  # per shard: its batches come one after the other
REDIS_CONNECTIONS_MAX: Final = 8


class PaymentParts:
    """`handlers` serve the routes. `open` before the first request, `close` after the last one."""

    def __init__(self, settings: Settings, *, orders: Orders, clock: RedisClock, call_s_max: float) -> None:
        """`call_s_max` bounds a call to PostgreSQL."""
        self._provider = open_provider(settings)
        self._redis = redis_client(
            settings.redis_url, connections_max=REDIS_CONNECTIONS_MAX, timeout_s=settings.request_deadline_ms / 1000
        )
        self._pools = [
            postgres_pool(
                dsn,
                size_max=POSTGRES_CONNECTIONS_MAX,
                call_s_max=call_s_max,
                autocommit=True,
                unchecked_s=POLL_UNCHECKED_S,
            )
            for dsn in (settings.shard_dsns if self._provider is not None else ())
        ]
        ledger = PaymentLedger(self._pools, settings.topology, provider=settings.payment_provider)
        self._settlements = Settlements(Settling(self._redis, ledger), ledger)
        self.handlers = Payments(
            provider=self._provider,
            orders=orders,
            settlements=self._settlements,
            lanes=Lanes(self._redis),
            clock=clock,
            body_deadline_ms=settings.body_deadline_ms,
            shop_url=settings.link_url,
        )

    async def open(self) -> None:
        """Returns at once; connections are made in the background."""
        for pool in self._pools:
            await pool.open()

    async def close(self) -> None:
        """End what is under way: the provider repeats it."""
        await self._settlements.close()
        if self._provider is not None:
            await self._provider.close()
        await asyncio.gather(*(pool.close(timeout=1.0) for pool in self._pools))
        await self._redis.aclose()

    def snapshot(self) -> dict[str, int]:
        """Events of the provider by result."""
        return self.handlers.snapshot()
