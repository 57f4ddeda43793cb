"""Live figures for staff as server-sent events (HTML standard, section 9.2): one look a second, shared by all viewers.

    event: figures
    data: {"at": "2026-01-01T00:00:00.000Z", "sales": [...], "lanes": [...], ...}

The sampler works only while somebody looks. A viewer holds the newest event and nothing else: one who reads slowly misses
some, and memory does not grow. A stream ends with its token, within seconds of its caller's sessions, and when the process
drains; `event: end` says which.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

import orjson
import structlog

from backoffice.operations.figures import Figures, Lookout, SaleFigures
from backoffice.web.fields import format_time
from backoffice.web.messages import STAFF, Answer, Call, Refused
from backoffice.web.routing import Authenticate, Route
from domain.problems import Problem
from runtime.process import tasks

PERIOD_S = 1.0
CHECK_S = 5.0  # a caller whose sessions were ended looks no longer than this
BEAT_S = 15.0  # a comment when there was no event for so long: proxies close what is silent
RATE_WINDOW_S = 5.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DRAINING = "draining"
_BEAT = b": still here\n\n"
EVENT_STREAM = "text/event-stream"

log = structlog.get_logger(__name__)


class Viewer:
    """One reader's stream (`web.messages.Stream`)."""

    def __init__(self, live: Live, call: Call) -> None:
        """For whoever makes the call, as long as its token is good."""
        self._live = live
        self._authorization = call.headers.get("authorization")
        self._expires_at_s = call.who.expires_at_s
        self._checked_at = time.monotonic()
        self._newest: bytes | None = None
        self._ending: str | None = None
        self._ended = False
        self._news = asyncio.Event()

    def show(self, event: bytes) -> None:
        """Replace what was not read yet."""
        self._newest = event
        self._news.set()

    def end(self, reason: str) -> None:
        """Say why and end."""
        self._ending = reason
        self._news.set()

    async def next_piece(self) -> bytes | None:
        """The newest event, a beat when there is none for long, None after the last one."""
        if self._ended:
            return None
        left_s = self._expires_at_s - time.time()
        if self._ending is None and self._newest is None and left_s > 0:
            await tasks.wait_within(self._news, min(BEAT_S, left_s))
        self._news.clear()
        self._check()
        if self._ending is not None:
            self._ended = True
            return _event("end", {"reason": self._ending})
        piece, self._newest = self._newest, None
        return _BEAT if piece is None else piece

    def _check(self) -> None:
        """End what the token does not allow any more. A check costs a signature: not at each event."""
        now = time.monotonic()
        if self._ending is None and time.time() >= self._expires_at_s:
            self._ending = Problem.TOKEN_EXPIRED.value
        if self._ending is not None or now - self._checked_at < CHECK_S:
            return
        self._checked_at = now
        try:
            self._live.authenticate(self._authorization)
        except Refused as refusal:
            if refusal.details.problem.status == HTTPStatus.UNAUTHORIZED:
                self._ending = refusal.details.problem.value

    def close(self) -> None:
        """Make room for another viewer."""
        self._live.leave(self)


class Live:
    """The sampler and its viewers."""

    def __init__(self, lookout: Lookout, authenticate: Authenticate, *, viewers_max: int) -> None:
        """Nobody looks yet; `viewers_max` at once, more are refused. `authenticate` judges their tokens again."""
        self._lookout = lookout
        self.authenticate = authenticate
        self._viewers_max = viewers_max
        self._viewers: set[Viewer] = set()
        self._rates = Rates()
        self._sampler: asyncio.Task[None] | None = None
        self._draining = False
        self._last: bytes | None = None

    async def watch(self, call: Call) -> Answer:
        """The stream of figures, from now until the token's end."""
        if self._draining or len(self._viewers) >= self._viewers_max:
            raise Refused(Problem.OVERLOADED, "There are as many viewers as there may be", retry_after_s=5)
        viewer = Viewer(self, call)
        self._viewers.add(viewer)
        if self._last is not None:
            viewer.show(self._last)
        if self._sampler is None:
            self._sampler = asyncio.create_task(self._sample())
        return Answer(body=viewer, media_type=EVENT_STREAM, headers={"x-accel-buffering": "no"})

    def leave(self, viewer: Viewer) -> None:
        """The viewer is gone; with the last one the sampler rests."""
        self._viewers.discard(viewer)
        if not self._viewers and self._sampler is not None:
            self._sampler.cancel()
            self._sampler, self._last = None, None

    def drain(self) -> None:
        """End all streams; no new ones."""
        self._draining = True
        for viewer in self._viewers:
            viewer.end(_DRAINING)

    @property
    def viewers(self) -> int:
        """How many look."""
        return len(self._viewers)

    async def _sample(self) -> None:
        self._rates = rates = Rates()
        due = time.monotonic()
        while True:
            try:
                figures = await self._lookout.look()
                self._last = event = _event("figures", document(figures, rates, now_s=time.monotonic()))
                for viewer in self._viewers:
                    viewer.show(event)
            except Exception:
                log.exception("no figures")  # viewers get beats meanwhile
            due = max(due + PERIOD_S, time.monotonic())
            await asyncio.sleep(due - time.monotonic())


class Rates:
    """Counts per second over the last seconds, by name. Bounded by the names of one look."""

    def __init__(self) -> None:
        """Nothing counted yet."""
        self._seen: dict[str, deque[tuple[float, int]]] = {}

    def per_s(self, counts: dict[str, int], now_s: float) -> dict[str, float | None]:
        """Each count's growth a second; None for one that is new. Names that are not there any more are forgotten."""
        self._seen = {name: self._seen.get(name, deque()) for name in counts}
        return {name: self._rate(self._seen[name], count, now_s) for name, count in counts.items()}

    @staticmethod
    def _rate(seen: deque[tuple[float, int]], count: int, now_s: float) -> float | None:
        if seen and count < seen[-1][1]:
            seen.clear()  # counted anew: Redis was emptied
        seen.append((now_s, count))
        while now_s - seen[0][0] > RATE_WINDOW_S:
            seen.popleft()
        since_s, before = seen[0]
        return None if since_s == now_s else round((count - before) / (now_s - since_s), 1)


def document(figures: Figures, rates: Rates, *, now_s: float) -> dict[str, Any]:
    """What an event says."""
    counts = {f"{kind} {sale.definition.sale_id}": count for sale in figures.sales for kind, count in _counts(sale)}
    growth = rates.per_s(counts, now_s)
    return {
        "at": _time(figures.at_ms) if figures.at_ms is not None else None,
        "sales": [_sale_document(sale, growth) for sale in figures.sales],
        "sales_left_out": figures.left_out,
        "lanes": None
        if figures.unrelayed is None
        else [
            {"lane": lane, "unrelayed": count, "age_s": round(age_s, 1)}
            for lane, (count, age_s) in enumerate(figures.unrelayed)
        ],
        "queues": None
        if figures.queues is None
        else [
            {"shard": shard, "messages": queue.depth.messages, "retrying": queue.depth.retrying, "dead": queue.dead}
            for shard, queue in enumerate(figures.queues)
        ],
        "outboxes": [
            None if outbox is None else {"shard": shard, "rows": outbox[0], "age_s": round(outbox[1], 1)}
            for shard, outbox in enumerate(figures.outboxes)
        ],
        "dead_letters": figures.dead,
        "unavailable": list(figures.unavailable),
    }


def _counts(sale: SaleFigures) -> tuple[tuple[str, int], ...]:
    return ("accepted", sale.accepted), ("refused", sum(sale.refused.values()))


def _sale_document(sale: SaleFigures, growth: dict[str, float | None]) -> dict[str, Any]:
    definition = sale.definition
    sale_id = str(definition.sale_id)
    items: list[dict[str, Any]] = [{"sku": item.sku} for item in definition.items]
    for item, stock in zip(items, sale.stock or (), strict=False):
        item |= {
            "allotted": stock.allotted,
            "available": stock.available + stock.lent - stock.borrowed,
            "reserved": stock.reserved,
            "paid": stock.paid,
            "rejected": stock.rejected,
        }
    return {
        "id": sale_id,
        "name": definition.name,
        "state": sale.state.value,
        "starts_at": _time(definition.starts_at_ms),
        "ends_at": _time(definition.ends_at_ms),
        "stock_known": sale.stock is not None,
        "items": items,
        "accepted": sale.accepted,
        "accepted_per_s": growth[f"accepted {sale_id}"],
        "refused": dict(sale.refused),
        "refused_per_s": growth[f"refused {sale_id}"],
        "invariants": {"A": sale.verdict_a, "B": sale.verdict_b},
    }


def _time(unix_ms: int) -> str:
    with contextlib.suppress(OverflowError):
        return format_time(_EPOCH + timedelta(milliseconds=unix_ms))
    return "9999-12-31T23:59:59.999Z"


def _event(name: str, data: dict[str, Any]) -> bytes:
    # One line of data: JSON has no raw line breaks.
    return b"event: %b\ndata: %b\n\n" % (name.encode("ascii"), orjson.dumps(data))


def routes(live: Live) -> tuple[Route, ...]:
    """Operations of this subject."""
    return (
        Route(
            "GET",
            "/v1/operations/live",
            live.watch,
            "Figures of running sales, each second (server-sent events)",
            "operations",
            roles=STAFF,
            media_type=EVENT_STREAM,
        ),
    )
