"""Composition root of one edge worker: builds its parts, starts and stops its background tasks."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from edge.admission import Admission
from edge.app import ORDER_TEMPLATE, EdgeApplication, order_path_only
from edge.authentication import Authentication, OutsideBuyers
from edge.clock import RedisClock
from edge.cors import Cors
from edge.direct_door import DirectDoor
from edge.health import Health
from edge.kernel_connections import KernelConnections
from edge.metrics import Metrics, Snapshot, SnapshotFolder
from edge.openapi import openapi
from edge.order_path import OrderPath
from edge.order_store import OrderStore
from edge.orders import Orders
from edge.payment_parts import PaymentParts
from edge.payments import Payments
from edge.places import Places
from edge.read_limits import ReadRate
from edge.refusals import Refusals
from edge.routing import Route, Router
from edge.sale_directory import SaleDirectory
from edge.sale_reads import SaleReads
from edge.user_rates import shared_rates
from hotpath.tokens import KeyRing
from runtime.buckets.following import Follower
from runtime.postgres.pool import postgres_pool
from runtime.process.settings import Settings
from runtime.process.supervision import Beat, TaskSupervisor
from runtime.process.tasks import until_tick
from runtime.process.telemetry import configure_logging, log_writes_failed
from runtime.redis.client import redis_client
from runtime.tokens.key_watch import KeyWatch
from runtime.tokens.keys import load_token_keys
from runtime.tokens.outside_tokens import OutsideTokens
from runtime.tokens.session_ends import SessionEnds

_log = structlog.get_logger("edge.worker")

REDIS_CONNECTIONS_MAX = 16  # of the sales, ended sessions and tallies that orders need
READ_REDIS_CONNECTIONS_MAX = 16
ADMISSION_REDIS_CONNECTIONS_MAX = 1  # its own, so that no other use delays the look that keeps the worker ready
POSTGRES_CONNECTIONS_MAX = 4  # per shard
POSTGRES_CALL_S_MAX = 1.8  # less than `order_store.READ_S_MAX`, so that a silent shard ends the call and not its task
SNAPSHOT_PERIOD_S = 1.0
STOP_S_MAX = 3.0
REQUEST_MS_BESIDE = 5000  # for a head that arrives slowly, and for reads, beside the deadlines of body and order
ROUND_S_MAX = 5.0  # for a sweep of the deadlines, and for a look at Redis
GC_THRESHOLD = 50_000  # allocations minus deallocations before the collector runs


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports that the workers listen on. `direct` 0: no direct door."""

    granian: int
    direct: int = 0


class Worker:
    """The parts of one worker. `number` is its place among the workers of this edge, from 0."""

    def __init__(self, settings: Settings, *, number: int, folder: Path, ports: Ports) -> None:
        assert settings.token_keys_file is not None, "the main process checks it"
        self._number = number
        self._durability = settings.durability
        self._topology = settings.topology
        timeout_s = settings.request_deadline_ms / 1000
        self._redis, self._read_redis, self._admission_redis = (
            redis_client(settings.redis_url, connections_max=connections_max, timeout_s=timeout_s)
            for connections_max in (REDIS_CONNECTIONS_MAX, READ_REDIS_CONNECTIONS_MAX, ADMISSION_REDIS_CONNECTIONS_MAX)
        )
        self._pools = [
            postgres_pool(dsn, size_max=POSTGRES_CONNECTIONS_MAX, call_s_max=POSTGRES_CALL_S_MAX)
            for dsn in settings.shard_dsns
        ]
        self._session_ends = SessionEnds(self._redis)
        self._token_keys = KeyWatch(settings.token_keys_file, load_token_keys)
        ring = KeyRing(self._token_keys.current.keys, issuer=settings.token_issuer, ends=self._session_ends.table)
        self._token_keys.on_change(lambda changed: ring.replace(changed.keys))
        clock = RedisClock()
        self._directory = SaleDirectory(self._redis, kept_s=settings.sale_kept_s)
        self._outside = OutsideTokens(settings.outside_issuers, self._session_ends)
        # With None the order path skips the check.
        outside = OutsideBuyers(self._outside) if settings.outside_issuers else None
        self._order_path = OrderPath(
            settings, redis=self._redis, ring=ring, directory=self._directory, outside=outside,
            rates=shared_rates(folder),
        )  # fmt: skip
        self._admission = Admission(
            self._admission_redis,
            cluster=self._topology,
            clock=clock,
            durability=settings.durability,
            memory_percent_max=settings.redis_memory_percent_max,
            on_memory=self._order_path.refuse,
            on_clock=self._order_path.clock_measured,
        )
        self._background = TaskSupervisor(give_up=_stop_worker)
        self._health = Health(
            self._admission,
            self._directory,
            self._session_ends,
            self._background,
            settings.durability,
            url_of(settings.edge_host, ports.direct) if ports.direct else None,
        )
        self._places = Places(
            KernelConnections(
                port=ports.granian,
                request_ms_max=settings.body_deadline_ms + REQUEST_MS_BESIDE + settings.request_deadline_ms,
            ),
            address_max=settings.edge_address_connections_max,
            connections_max=settings.edge_connections_max,
            trusted=settings.trusted_proxies,
        )
        self._refusals = Refusals(self._redis, self._directory)
        self._metrics = Metrics(SnapshotFolder(folder, number), number, self._snapshot)
        orders = Orders(
            redis=self._read_redis,
            store=OrderStore(self._read_redis, self._pools, self._topology),
            directory=self._directory,
            authentication=Authentication(ring, clock, outside),
            clock=clock,
            rate=ReadRate(per_s=settings.user_read_rate, burst=settings.user_read_burst),
            deadline_ms=settings.request_deadline_ms,
        )
        self._payments = PaymentParts(settings, orders=orders, clock=clock, call_s_max=POSTGRES_CALL_S_MAX)
        cors = Cors(settings.cors_origins)
        sales = SaleReads(self._read_redis, self._directory, clock)
        self.application = EdgeApplication(
            router=Router(
                routes(
                    orders=orders,
                    payments=self._payments.handlers,
                    sales=sales,
                    health=self._health,
                    metrics=self._metrics,
                )
            ),
            order_exchange=self._order_path.exchange,
            refuses_orders=self._refuses_orders,
            cors=cors,
            drain_ms=settings.drain_ms,
            on_start=self._start,
            on_stop=self._stop,
            on_drain=self._drain,
            in_flight_elsewhere=lambda: 0 if self._direct is None else self._direct.unanswered,
        )
        self._direct = (
            DirectDoor(
                self._order_path, self.application, cors, host=settings.edge_host, port=ports.direct,
                connections_max=settings.edge_connections_max, address_max=settings.edge_address_connections_max,
                trusted=settings.trusted_proxies, refuses_orders=self._refuses_orders,
            )
            if ports.direct
            else None
        )  # fmt: skip

    def _drain(self) -> None:
        self._health.drain()
        if self._direct is not None:
            self._direct.drain()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        for name, work in (
            ("order-path", partial(self._in_rounds, "order-path", self._order_path.run)),
            ("admission", partial(self._in_rounds, "admission", self._admission.run)),
            ("connections", partial(self._in_rounds, "connections", self._places.run)),
            ("sales", self._directory.follow),
            ("session-ends", self._session_ends.run),
            ("token-keys", self._token_keys.run),
            ("outside-issuers", self._outside.run),
            ("refusals", self._refusals.run),
            ("buckets", Follower(self._redis, self._topology, name=f"edge-{self._number}").follow),
            ("snapshots", self._leave_snapshots),
        ):
            self._background.start(name, work, loop=loop)
        if self._direct is not None:
            for name, work in (("direct-door", self._direct.run), ("direct-connections", self._direct.places.run)):
                self._background.start(name, partial(self._in_rounds, name, work), loop=loop)
        self._background.start("pools", self._open_pools, returns=True, loop=loop)
        self._metrics.publish()  # tells the main process that this worker handles signals

    async def _stop(self) -> None:
        if self._direct is not None:
            await self._direct.finish()
        await self._background.stop()
        # Only statistics and clean closing are left: an unresponsive server must not keep the process alive.
        try:
            async with asyncio.timeout(STOP_S_MAX):
                await self._refusals.flush()
                await self._payments.close()
                await asyncio.gather(*(pool.close(timeout=1.0) for pool in self._pools))
                await asyncio.gather(*(r.aclose() for r in (self._redis, self._read_redis, self._admission_redis)))
        except TimeoutError:
            _log.warning("stopped_late")

    def _refuses_orders(self) -> bool:
        """True also until the ended sessions are loaded: a token of an ended session must not buy."""
        return self._admission.refuses_orders() or not self._session_ends.loaded

    async def _in_rounds(self, name: str, run: Callable[[Beat], Awaitable[None]]) -> None:
        with self._background.rounds(name, s_max=ROUND_S_MAX) as beat:
            await run(beat)

    async def _open_pools(self) -> None:
        for pool in self._pools:
            await pool.open()
        await self._payments.open()

    async def _leave_snapshots(self) -> None:
        while True:
            try:
                self._metrics.publish()
            except OSError as error:
                _log.warning("snapshot_not_left", error=str(error))
            await asyncio.sleep(until_tick(SNAPSHOT_PERIOD_S))

    def _snapshot(self) -> Snapshot:
        keys = self._token_keys.current
        return {
            **self._order_path.snapshot(),
            **self.application.snapshot(),
            "payment_events": self._payments.snapshot(),
            "pid": os.getpid(),
            "durability": self._durability.value,
            "ready": not self._health.missing,
            "memory_percent": self._admission.observed.memory_percent,
            "known_sales": len(self._directory),
            "ended_sessions": len(self._session_ends.table),
            "outside_keys": self._outside.keys,
            "direct": None if self._direct is None else self._direct.snapshot(),
            "task_restarts": dict(self._background.restarts),
            "log_writes_failed": log_writes_failed(),
            "token_keys": {kid: kid == keys.active for kid in keys.keys},
        }


def url_of(host: str, port: int) -> str:
    """The address as a URL."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _stop_worker(task: str) -> None:
    """Stop the worker when a background task keeps ending; the main process starts another one."""
    _log.error("worker_given_up", task=task)
    os.kill(os.getpid(), signal.SIGTERM)


def routes(*, orders: Orders, payments: Payments, sales: SaleReads, health: Health, metrics: Metrics) -> list[Route]:
    """Every operation of the edge."""
    return [
        Route("POST", ORDER_TEMPLATE, order_path_only),
        Route("GET", "/v1/sales/{sale_id}", sales.get),
        Route("GET", "/v1/orders", orders.list),
        Route("GET", "/v1/orders/{order_id}", orders.get),
        Route("POST", "/v1/orders/{order_id}/cancel", orders.cancel),
        Route("POST", "/v1/orders/{order_id}/payment", payments.start),
        Route("POST", "/v1/payments/webhook", payments.webhook),
        Route("GET", "/openapi.json", openapi),
        Route("GET", "/livez", health.livez),
        Route("GET", "/readyz", health.readyz),
        Route("GET", "/metrics", metrics.get),
    ]


def build(settings: Settings, *, number: int, folder: Path, ports: Ports) -> EdgeApplication:
    """Set up logging and build the application, in a worker process."""
    configure_logging("edge", settings.log_level)
    application = Worker(settings, number=number, folder=folder, ports=ports).application
    # Objects that exist now live as long as the worker, and requests create no cycles. A collection every 700 objects
    # only adds pauses, the longest when it visits every imported module.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    return application
