"""Liveness and readiness of this process, and the routes of operations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Literal, cast

from pydantic import Field

from backoffice.stores import Stores
from backoffice.web.fields import Resource
from backoffice.web.messages import Answer, Call, Refused
from backoffice.web.metrics import CONTENT_TYPE_LATEST, Metrics
from backoffice.web.routing import Route
from domain.problems import Problem
from runtime.postgres.databases import Database
from runtime.process.supervision import TaskSupervisor
from runtime.tokens.session_ends import SessionEnds

CHECK_S_MAX = 1.0
# Without the cache only login and registration fail; all other reads go to the databases. All processes share the
# cache: if they were not ready without it, a load balancer would take all of them out of service at once.
_DISPENSABLE = "cache"


class Alive(Resource):
    """The process runs."""

    alive: bool = True


class Ready(Resource):
    """The process answers requests; `degraded`: some requests fail because of the missing parts."""

    status: Literal["ready", "degraded"] = "ready"
    missing: list[str] = Field(default_factory=list)


class Health:
    """Ready: every store but the cache answers, the first administrator exists, every background task runs, and the
    process is not draining."""

    def __init__(self, stores: Stores, ends: SessionEnds, background: TaskSupervisor) -> None:
        """Not prepared yet."""
        self._stores = stores
        self._ends = ends
        self._background = background
        self.prepared = False
        self.draining = False

    async def live(self, _: Call) -> Answer:
        """The process runs."""
        return Answer(body=Alive())

    async def ready(self, _: Call) -> Answer:
        """Ask every store for at most `CHECK_S_MAX` and name the missing ones; 503, unless only the cache is."""
        asked: dict[str, Awaitable[object]] = {
            "redis": cast(Awaitable[object], self._stores.redis.ping()),
            "cache": cast(Awaitable[object], self._stores.cache.ping()),
            "catalogue": _ping(self._stores.catalogue),
            **{name: _ping(shard) for name, shard in self._shards()},
        }
        answers = await asyncio.gather(
            *(asyncio.wait_for(answer, CHECK_S_MAX) for answer in asked.values()), return_exceptions=True
        )
        checks = {name: not isinstance(answer, BaseException) for name, answer in zip(asked, answers, strict=True)}
        # A primary that waits for a standby in COMMIT still answers the question above.
        for name, database in (("catalogue", self._stores.catalogue), *self._shards()):
            checks[name] &= database.commits.are_answered
        checks |= {"sessions": self._ends.synced, "prepared": self.prepared, "not_draining": not self.draining}
        missing = [name for name, well in checks.items() if not well]
        missing += [f"task {name}" for name in self._background.problems]
        if missing == [_DISPENSABLE]:
            return Answer(body=Ready(status="degraded", missing=missing))
        if missing:
            detail = f"Not ready: {', '.join(missing)}"
            raise Refused(Problem.DEPENDENCY_UNAVAILABLE, detail, extensions={"missing": missing})
        return Answer(body=Ready())

    def _shards(self) -> list[tuple[str, Database]]:
        return [(f"shard_{place}", shard) for place, shard in enumerate(self._stores.shards)]


async def _ping(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute("SELECT 1")


def routes(health: Health, metrics: Metrics) -> tuple[Route, ...]:
    """The routes of operations, without `/openapi.json`, which needs all routes."""
    return (
        Route("GET", "/livez", health.live, "The process runs", "operations", answers=Alive),
        Route(
            "GET",
            "/readyz",
            health.ready,
            "The process answers requests",
            "operations",
            answers=Ready,
            problems=(Problem.DEPENDENCY_UNAVAILABLE,),
        ),
        Route("GET", "/metrics", metrics.show, "Prometheus metrics", "operations", media_type=CONTENT_TYPE_LATEST),
    )
