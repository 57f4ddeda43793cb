"""Liveness, readiness and metrics of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Literal, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from pydantic import Field

from backoffice.stores import Stores
from backoffice.web.fields import Resource
from backoffice.web.messages import Answer, Call, Refused
from backoffice.web.routing import Route
from domain.problems import Problem
from runtime.postgres.databases import Database
from runtime.tokens.session_ends import SessionEnds

CHECK_S_MAX = 1.0
# Without it nobody logs in or registers, and all the rest is read from the databases. It is shared by all processes: were they
# not ready without it, a load balancer would take out every one of them.
_DISPENSABLE = "cache"


class Alive(Resource):
    """The process runs."""

    alive: bool = True


class Ready(Resource):
    """Requests can be answered; `degraded` when some cannot, for what is missing."""

    status: Literal["ready", "degraded"] = "ready"
    missing: list[str] = Field(default_factory=list)


class Health:
    """Ready: every store answers (the cache Redis may not), the first administrator is there, the process is not ending."""

    def __init__(self, stores: Stores, ends: SessionEnds) -> None:
        """Not prepared yet."""
        self._stores = stores
        self._ends = ends
        self.prepared = False
        self.draining = False

    async def live(self, _: Call) -> Answer:
        """The process runs."""
        return Answer(body=Alive())

    async def ready(self, _: Call) -> Answer:
        """Asks every store, each for at most a second, and names those that do not answer: 503, unless it goes on without."""
        asked: dict[str, Awaitable[object]] = {
            "redis": cast(Awaitable[object], self._stores.redis.ping()),
            "cache": cast(Awaitable[object], self._stores.cache.ping()),
            "catalogue": _ping(self._stores.catalogue),
            **{f"shard_{place}": _ping(shard) for place, shard in enumerate(self._stores.shards)},
        }
        answers = await asyncio.gather(
            *(asyncio.wait_for(answer, CHECK_S_MAX) for answer in asked.values()), return_exceptions=True
        )
        checks = {name: not isinstance(answer, BaseException) for name, answer in zip(asked, answers, strict=True)}
        checks |= {"sessions": self._ends.synced, "prepared": self.prepared, "not_draining": not self.draining}
        missing = [name for name, well in checks.items() if not well]
        if missing == [_DISPENSABLE]:
            return Answer(body=Ready(status="degraded", missing=missing))
        if missing:
            detail = f"Not ready: {', '.join(missing)}"
            raise Refused(Problem.DEPENDENCY_UNAVAILABLE, detail, extensions={"missing": missing})
        return Answer(body=Ready())


class Metrics:
    """Counts and times of requests, in a registry of this application's own."""

    def __init__(self) -> None:
        """All at zero."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._requests = Counter(
            "flashsale_backoffice_requests",
            "Answered requests.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "flashsale_backoffice_request_seconds",
            "Time in the handler.",
            ("route",),
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15),
            registry=self.registry,
        )
        self.repaired = Counter(
            "flashsale_backoffice_synchroniser_repairs",
            "Interrupted publishings, changes and restocks that the synchroniser finished.",
            registry=self.registry,
        )
        self.swept = Counter(
            "flashsale_backoffice_sweeper_repairs",
            "Interrupted registrations, changes of address and erasures that the sweeper finished.",
            registry=self.registry,
        )
        self.ready = Gauge("flashsale_backoffice_prepared", "1 when the start-up work is done.", registry=self.registry)

    def observe(self, *, route: str, method: str, status: int, seconds: float) -> None:
        """Take note of one answered request; `route` is a template, so labels are bounded."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    async def show(self, _: Call) -> Answer:
        """All metrics in Prometheus's text format."""
        return Answer(body=generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)


async def _ping(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute("SELECT 1")


def routes(health: Health, metrics: Metrics) -> tuple[Route, ...]:
    """Operations of this subject but for the description, which needs all of them."""
    return (
        Route("GET", "/livez", health.live, "The process runs", "operations", answers=Alive),
        Route(
            "GET",
            "/readyz",
            health.ready,
            "Requests can be answered",
            "operations",
            answers=Ready,
            problems=(Problem.DEPENDENCY_UNAVAILABLE,),
        ),
        Route("GET", "/metrics", metrics.show, "Prometheus metrics", "operations", media_type=CONTENT_TYPE_LATEST),
    )
