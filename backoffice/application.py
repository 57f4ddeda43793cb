"""Composition of the backoffice: the parts of all subjects, their routes, and the work beside requests."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import redis.exceptions
import structlog

from backoffice.analytics.parts import AnalyticsParts
from backoffice.audit.parts import AuditParts
from backoffice.auth.parts import AuthParts, TokenParts
from backoffice.caching.cache import Bounds
from backoffice.caching.caches import Caches
from backoffice.catalogue.parts import CatalogueParts
from backoffice.catalogue.store import PRODUCT_CODEC
from backoffice.dead_letters.parts import DeadLetterParts
from backoffice.figures.parts import FigureParts
from backoffice.limits.attempts import Attempts
from backoffice.limits.known_clients import KnownClients
from backoffice.notices.parts import NoticeParts
from backoffice.orders.parts import OrderParts
from backoffice.pages import routes as page_routes
from backoffice.sales.parts import SaleParts
from backoffice.stores import Stores
from backoffice.users.model import USER_CODEC
from backoffice.users.parts import UserParts
from backoffice.web import health, openapi
from backoffice.web.metrics import Metrics
from backoffice.web.replica_metrics import ReplicaMetrics
from backoffice.web.routing import Dispatcher, Route
from backoffice.webhooks.parts import WebhookParts
from runtime.buckets.following import Follower
from runtime.process import fingerprint
from runtime.process.backoff import Backoff
from runtime.process.errors import OperatorError
from runtime.process.settings import Settings
from runtime.process.supervision import TaskSupervisor, Work
from runtime.tokens.key_watch import KeyWatch
from runtime.tokens.keys import StaffKeys, TokenKeys

log = structlog.get_logger(__name__)


class TaskKeepsEnding(OperatorError):
    """A background task ended too often."""

    def __init__(self, task: str) -> None:
        """`task` is its name."""
        super().__init__(f"the background task {task!r} keeps ending; its errors are in the log")


class Backoffice:
    """One process's application (`web.server.Application`)."""

    def __init__(self, settings: Settings, *, buyer_keys: KeyWatch[TokenKeys], staff_keys: KeyWatch[StaffKeys]) -> None:
        """Does not connect yet; ValueError for settings that contradict one another."""
        self._stores = stores = Stores.from_settings(settings)
        self._metrics = Metrics()
        ReplicaMetrics((stores.catalogue, *stores.shards), self._metrics.registry)
        self._tokens = tokens = TokenParts(
            settings, stores, buyer_keys=buyer_keys, staff_keys=staff_keys, registry=self._metrics.registry
        )
        self._background = TaskSupervisor(give_up=self._give_up)
        self._health = health.Health(stores, tokens.ends, self._background)
        self._caches = Caches(settings.cache_url, self._metrics.registry)
        products_cache = self._caches.add("product", PRODUCT_CODEC, Bounds.from_settings(settings))
        self._dead_letters = DeadLetterParts(settings)
        self._figures = FigureParts(
            stores,
            self._dead_letters.queue,
            self._dead_letters.letters,
            tokens.verifier,
            viewers_max=settings.live_viewers_max,
        )
        attempts, known_clients = Attempts(stores.cache), KnownClients(stores.cache)
        users_cache = self._caches.add("user", USER_CODEC, Bounds.from_settings(settings))
        accounts = UserParts(
            stores,
            users_cache,
            tokens.sessions,
            attempts,
            known_clients,
            recent_login_s=settings.recent_login_s,
            repaired=self._metrics.swept.inc,
        )
        self._sweeper = accounts.sweeper
        self._auth = AuthParts(
            settings, stores, tokens, accounts.users, accounts.administrators, attempts, known_clients
        )
        self._audit = AuditParts(stores, accounts.addresses.user_of, retention_days=settings.audit_retention_days)
        self._fatal: OperatorError | None = None
        sales = SaleParts(stores, kept_s=settings.sale_kept_s, repaired=self._metrics.repaired.inc)
        self._synchroniser = sales.synchroniser
        orders = OrderParts(stores, sales.service)
        self._restocker = orders.restocker
        subjects = (
            *self._auth.routes,
            *accounts.routes,
            *NoticeParts(settings, stores, attempts).routes,
            *CatalogueParts(stores, products_cache).routes,
            *sales.routes,
            *orders.routes,
            *health.routes(self._health, self._metrics),
            *self._figures.routes,
            *self._dead_letters.routes,
            *WebhookParts(settings, stores).routes,
            *self._audit.routes,
            *AnalyticsParts(stores, sales.service, days=settings.analytics_days).routes,
            *page_routes.routes(edge_url=settings.edge_public_url),
        )
        self.routes: tuple[Route, ...] = (*subjects, openapi.route(subjects, version=_version()))
        self.dispatcher = Dispatcher(tokens.verifier, self._metrics.observe, self._audit.recorder)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Pools are open, and background work runs.

        Raises OperatorError for a fault that only a person can resolve: FingerprintMismatch when Redis belongs to
        another cluster, FirstAdminError for settings of the first administrator.
        """
        background = self._background
        async with self._stores.opened(background), self._caches.running(background):
            await self._check_fingerprint()
            work: dict[str, Work] = {
                "synchroniser": partial(self._synchroniser.run, background),
                "sweeper": partial(self._sweeper.run, background),
                "restocker": partial(self._restocker.run, background),
                "buckets": Follower(self._stores.redis, self._stores.topology, name="backoffice").follow,
                **self._tokens.work(background),
                **self._audit.work(background),
            }
            background.start("preparation", self._prepare, returns=True)
            for name, part in work.items():
                background.start(name, part)
            try:
                yield
            finally:
                await background.stop()
                await self._audit.recorder.write_rest()
                self._auth.close()
                await self._dead_letters.close()
                if self._fatal is not None:
                    raise self._fatal

    def drain(self) -> None:
        """Readiness fails from now on, and streams end."""
        self._health.draining = True
        self._figures.live.drain()

    async def _check_fingerprint(self) -> None:
        """FingerprintMismatch when Redis belongs to another cluster. Waits for a Redis that is away."""
        backoff = Backoff(first_s=0.1, longest_s=2.0)
        while True:
            try:
                await fingerprint.check(self._stores.redis, self._stores.topology)
                return
            except redis.exceptions.RedisError as error:
                log.warning("waiting for Redis", error=type(error).__name__)
                await asyncio.sleep(backoff.next_s())

    def _give_up(self, task: str) -> None:
        """Stop in order, with status 1, when a background task keeps ending; the supervisor starts another process."""
        self._fatal = TaskKeepsEnding(task)
        os.kill(os.getpid(), signal.SIGTERM)

    async def _prepare(self) -> None:
        """Make the first administrator as soon as the databases answer."""
        try:
            await self._auth.first_admin.make_when_possible()
        except OperatorError as error:
            # No repetition helps: the process ends, and `running` raises the error.
            self._fatal = error
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self._health.prepared = True
        self._metrics.ready.set(1)


def _version() -> str:
    try:
        return version("flashsale")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0"
