"""Streams of live figures as server-sent events (HTML standard, section 9.2): one sample a second for all viewers.

    event: figures
    data: {"at": "2026-01-01T00:00:00.000Z", "sales": [...], "lanes": [...], ...}

The sampler runs only while there are viewers. A viewer holds only the newest event: a slow reader misses events, and
memory does not grow. A stream ends when its token expires, within seconds after the sessions of its caller end, and
when the process drains; `event: end` carries the reason.
"""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import Any

import orjson
import structlog

from backoffice.figures.documents import Rates, figures_document
from backoffice.figures.store import Lookout
from backoffice.web.messages import Call, Refused
from backoffice.web.routing import Authenticate
from domain.problems import Problem
from runtime.process import tasks

PERIOD_S = 1.0
CHECK_S = 5.0  # the longest time that a stream goes on after the sessions of its caller ended
USER_VIEWERS_MAX = 20  # streams of one user
BEAT_S = 15.0  # after so long without an event, a comment keeps proxies from closing the connection
_DRAINING = "draining"
_BEAT = b": still here\n\n"

log = structlog.get_logger(__name__)


class Viewer:
    """The stream of one reader (`web.messages.Stream`)."""

    def __init__(self, live: Live, call: Call) -> None:
        """For the caller, until the token expires."""
        self.user_id = call.who.user_id
        self._live = live
        self._authorization = call.headers.get("authorization")
        self._expires_at_s = call.who.expires_at_s
        self._checked_at = time.monotonic()
        self._newest: bytes | None = None
        self._ending: str | None = None
        self._ended = False
        self._news = asyncio.Event()

    def show(self, event: bytes) -> None:
        """Replace the event that is not read yet."""
        self._newest = event
        self._news.set()

    def end(self, reason: str) -> None:
        """End the stream with a reason."""
        self._ending = reason
        self._news.set()

    async def next_piece(self) -> bytes | None:
        """The newest event, a beat after `BEAT_S` without one, None after the last one."""
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
        """End the stream if its token is not valid any more. Not at each event: a check verifies a signature."""
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
        """No viewers yet; more than `viewers_max` at once are refused. `authenticate` checks their tokens again."""
        self._lookout = lookout
        self.authenticate = authenticate
        self._viewers_max = viewers_max
        self._viewers: set[Viewer] = set()
        self._sampler: asyncio.Task[None] | None = None
        self._draining = False
        self._last: bytes | None = None

    def watch(self, call: Call) -> Viewer:
        """A stream of figures from now on.

        Refused while draining, and when there are `viewers_max` viewers or `USER_VIEWERS_MAX` of the caller.
        """
        if self._draining or len(self._viewers) >= self._viewers_max:
            raise Refused(Problem.OVERLOADED, "There are too many viewers. Try again later", retry_after_s=5)
        if sum(viewer.user_id == call.who.user_id for viewer in self._viewers) >= USER_VIEWERS_MAX:
            detail = f"You have {USER_VIEWERS_MAX} streams of figures open. Close one of them"
            raise Refused(Problem.OVERLOADED, detail, retry_after_s=5)
        viewer = Viewer(self, call)
        self._viewers.add(viewer)
        if self._last is not None:
            viewer.show(self._last)
        if self._sampler is None:
            self._sampler = asyncio.create_task(self._sample())
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """The viewer has gone; the sampler stops after the last one."""
        self._viewers.discard(viewer)
        if not self._viewers and self._sampler is not None:
            self._sampler.cancel()
            self._sampler, self._last = None, None

    def drain(self) -> None:
        """End all streams and refuse new ones."""
        self._draining = True
        for viewer in self._viewers:
            viewer.end(_DRAINING)

    @property
    def viewers(self) -> int:
        """The number of viewers."""
        return len(self._viewers)

    async def _sample(self) -> None:
        rates = Rates()
        due = time.monotonic()
        while True:
            try:
                figures = await self._lookout.look()
                data = figures_document(figures, rates, now_s=time.monotonic())
                self._last = event = _event("figures", data)
                for viewer in self._viewers:
                    viewer.show(event)
            except Exception:
                log.exception("figures failed")  # viewers get beats meanwhile
            due = max(due + PERIOD_S, time.monotonic())
            await asyncio.sleep(due - time.monotonic())


def _event(name: str, data: dict[str, Any]) -> bytes:
    # A single data line: JSON has no raw line breaks.
    return b"event: %b\ndata: %b\n\n" % (name.encode("ascii"), orjson.dumps(data))
