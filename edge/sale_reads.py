"""GET /v1/sales/{id}: a sale and the availability of its items. Reads Redis once a second per sale; never writes."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, field

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from domain.problems import Problem
from domain.sales import SaleDefinition, SaleState, state_at
from edge.clock import RedisClock
from edge.presenting import availability, sale_document, timestamp
from edge.problems import Answer, refuse
from edge.read_limits import Places, PlacesTaken
from edge.routing import Request
from edge.sale_directory import DirectoryUnavailable, SaleDirectory
from reservation.lane import LaneForgot
from reservation.reading import read_sale_lanes

_log = structlog.get_logger("edge.sales")

FRESH_S = 1.0
CACHED_MAX = 1000  # sales; also the limit of the directory
# Sales whose counters are read at once in a worker. Any number of requests waits for one read.
READS_RUNNING_MAX = 4
READS_WAITING_MAX = 256
READ_WAIT_S_MAX = 1.0


@dataclass(slots=True)
class _Shown:
    """The rendered sale, valid for one version of its definition and for one second."""

    definition: SaleDefinition
    availabilities: list[str]
    read_at: float
    bodies: dict[SaleState, tuple[bytes, str]] = field(
        default_factory=dict
    )  # state -> body without its end, entity tag


class SaleReads:
    """Serves sales from memory. Reads the lanes' counters once a second per sale, for any number of requests."""

    def __init__(self, redis: Redis, directory: SaleDirectory, clock: RedisClock) -> None:
        self._redis = redis
        self._directory = directory
        self._clock = clock
        self._places = Places(running_max=READS_RUNNING_MAX, waiting_max=READS_WAITING_MAX, wait_s_max=READ_WAIT_S_MAX)
        self._shown: dict[str, _Shown] = {}
        self._reading: dict[str, asyncio.Task[_Shown]] = {}

    async def get(self, request: Request) -> Answer:
        """The sale, or 304 when the client has this version already."""
        try:
            sale = await self._directory.load_known(request.params["sale_id"])
        except DirectoryUnavailable:
            return refuse(Problem.DEPENDENCY_UNAVAILABLE)
        if sale is None:
            return refuse(Problem.SALE_NOT_FOUND)
        try:
            shown = await self._fresh(str(sale.definition.sale_id), sale.definition)
        except PlacesTaken:
            return refuse(Problem.OVERLOADED)
        except (TimeoutError, RedisError, OSError, LaneForgot) as error:
            _log.warning("sale_read_failed", sale_id=str(sale.definition.sale_id), error=str(error))
            return refuse(Problem.DEPENDENCY_UNAVAILABLE)
        now_ms = self._clock.now_ms()
        definition = shown.definition
        state = state_at(
            definition.state, starts_at_ms=definition.starts_at_ms, ends_at_ms=definition.ends_at_ms, now_ms=now_ms
        )
        body, tag = self._body(shown, state)
        headers = [("etag", tag), ("cache-control", "public, max-age=1")]
        if _matches(request.headers.get("if-none-match"), tag):
            return 304, headers, b""
        # {"id":...,"items":[...]   ,"server_time":"..."}
        body += b',"server_time":"' + timestamp(now_ms).encode("ascii") + b'"}'
        return 200, [("content-type", "application/json"), *headers], body

    @staticmethod
    def _body(shown: _Shown, state: SaleState) -> tuple[bytes, str]:
        cached = shown.bodies.get(state)
        if cached is None:
            document = orjson.dumps(sale_document(shown.definition, state=state, availabilities=shown.availabilities))
            # Weak, because the server's time differs under the same tag.
            tag = f'W/"{hashlib.blake2b(document, digest_size=12).hexdigest()}"'
            cached = shown.bodies[state] = (document[:-1], tag)
        return cached

    async def _fresh(self, sale_id: str, definition: SaleDefinition) -> _Shown:
        shown = self._shown.get(sale_id)
        if shown is not None and shown.definition is definition and time.monotonic() - shown.read_at < FRESH_S:
            return shown
        task = self._reading.get(sale_id)
        if task is None:
            task = asyncio.create_task(self._read(sale_id, definition))
            self._reading[sale_id] = task
            task.add_done_callback(lambda _: self._reading.pop(sale_id, None))
        return await asyncio.shield(task)

    async def _read(self, sale_id: str, definition: SaleDefinition) -> _Shown:
        async with self._places.place():
            lanes = await read_sale_lanes(self._redis, definition)
        if self._directory.is_forgotten(sale_id, self._clock.now_ms()):
            availabilities = ["sold_out"] * len(definition.items)
        else:
            stocks = []
            for there in lanes:
                if there.full_stock is None:
                    raise LaneForgot(sale_id=definition.sale_id, lane=there.lane)
                stocks.append(there.full_stock)
            availabilities = [availability(counters) for counters in zip(*stocks, strict=True)]
        shown = _Shown(definition, availabilities, time.monotonic())
        if len(self._shown) >= CACHED_MAX and sale_id not in self._shown:
            del self._shown[min(self._shown, key=lambda i: self._shown[i].read_at)]
        self._shown[sale_id] = shown
        return shown


def _matches(header: str | None, tag: str) -> bool:
    """Evaluate If-None-Match by weak comparison (RFC 9110, section 13.1.2)."""
    if not header:
        return False
    opaque = tag.removeprefix("W/")
    return any(part.strip() == "*" or part.strip().removeprefix("W/") == opaque for part in header.split(","))
