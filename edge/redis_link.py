"""The order path's connection to Redis: carries script batches, one write and one read each. Knows nothing of orders.

Reconnects with jitter until it is cancelled; the batcher resubmits the orders in flight. A peer that owes replies and
stays silent counts as lost, because a cut cable sends no end of stream. A Redis that comes back with less data gets no
order until its lanes are closed for recovery; the watch of `workers.recovery` does this within half a second.

In a Redis Cluster each node has a link with its own batcher, and `edge.cluster_link` gives it its lanes.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, cast
from urllib.parse import parse_qs, unquote, urlsplit

import structlog

from edge.lane_marks import LaneMarks
from hotpath.batcher import Batcher
from hotpath.resp import ProtocolViolation, ReplyDecoder, ReplyError, encode_command
from runtime.process.supervision import Beat, no_beat, together
from runtime.process.tasks import until_tick, wait_within

_log = structlog.get_logger("edge.redis_link")

SWEEP_S: Final = 0.025
IDLE_SWEEP_S: Final = 0.25  # while no order waits; the first one to come wakes the sweep
RECONNECT_S_MIN: Final = 0.02
RECONNECT_S_MAX: Final = 0.5
LOOK_EVERY_SWEEPS: Final = 4  # between looks at the lanes' sequences, while orders are sent
HELD_S_MAX: Final = 2.0  # longest wait after Redis lost data; then no watch is running, and orders continue
HELD_LOOK_S: Final = 0.05
_PORT: Final = 6379
_ELSEWHERE: Final = ("MOVED ", "ASK ", "TRYAGAIN ", "CLUSTERDOWN ")  # errors of a cluster's node about a key


class LinkRefused(Exception):
    """The server answered the handshake with an error (wrong password, loading data). Carries the error text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """The address in a `redis://`, `rediss://` or `unix://` URL."""

    host: str = ""
    port: int = _PORT
    path: str = ""
    database: int = 0
    username: str = ""
    password: str = ""
    tls: bool = False

    def __repr__(self) -> str:
        """Leaves out the password."""
        return f"RedisAddress({self.path or f'{self.host}:{self.port}'}, database={self.database})"

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Raises ValueError for another scheme."""
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError(f"not a Redis URL scheme: {parts.scheme!r}")
        database = parse_qs(parts.query).get("db", [""])[0]
        if parts.scheme != "unix":
            database = database or parts.path.strip("/")
        return cls(
            host=parts.hostname or "127.0.0.1",
            port=parts.port or _PORT,
            path=unquote(parts.path) if parts.scheme == "unix" else "",
            database=int(database or 0),
            username=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            tls=parts.scheme == "rediss",
        )

    @property
    def greeting(self) -> list[list[bytes]]:
        """The commands that open a connection."""
        commands = []
        if self.password:
            user = [self.username.encode()] if self.username else []
            commands.append([b"AUTH", *user, self.password.encode()])
        if self.database:
            commands.append([b"SELECT", str(self.database).encode()])
        return [*commands, [b"CLIENT", b"SETNAME", b"flashsale-edge-orders"], [b"PING"]]


class RedisLink(asyncio.Protocol):
    """At most one connection at a time. One event loop owns it."""

    def __init__(
        self,
        address: RedisAddress,
        make_batcher: Callable[[Callable[[], None]], Batcher],
        *,
        silence_s_max: float,
        on_sweep: Callable[[int], object],
        marks: LaneMarks,
        lanes: Sequence[int] | None = None,
    ) -> None:
        """`make_batcher` gets a function that requests a write; `on_sweep` gets the time (CLOCK_MONOTONIC, ns).

        `lanes`: those of this server, which may be replaced at any time; all lanes by default.
        """
        self.lanes: Sequence[int] = marks.lanes if lanes is None else lanes
        self._address = address
        self._silence_s_max = silence_s_max
        self._on_sweep = on_sweep
        self._marks = marks
        self._looks_open = 0
        self._sent_at_last_look = 0
        self._work = asyncio.Event()  # an order came: sweep as often as orders need it
        self._transport: asyncio.Transport | None = None
        self._fd = -1  # of a connection without TLS
        self._lost: asyncio.Future[None] | None = None
        self._greeted: asyncio.Future[None] | None = None
        self._greeting_replies: list[object] = []
        self._greeting_replies_due = 0
        self._greeting_errors_left = 0
        self._decoder = ReplyDecoder()
        self._heard_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self.connections = 0
        self.batcher = make_batcher(self._wake)

    async def run(self, beat: Beat = no_beat) -> None:
        """Maintain the connection and enforce deadlines. Cancel to stop: the remaining orders end at once.

        Calls `beat` at each sweep of the deadlines.
        """
        self._loop = asyncio.get_running_loop()
        try:
            await together(connect=self._stay_connected(), sweep=self._sweep(beat))
        finally:
            self._drop()
            self.batcher.sweep(2**62)  # ends every order: no connection follows

    async def _stay_connected(self) -> None:
        pause_s = RECONNECT_S_MIN
        while True:
            try:
                lost = await self._connect()
                pause_s = RECONNECT_S_MIN
                await lost
                _log.warning("redis_lost")
            except (OSError, TimeoutError, LinkRefused, ProtocolViolation) as error:
                _log.warning("redis_unreachable", error=str(error) or type(error).__name__)
            await asyncio.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311 - jitter, no secret
            pause_s = min(RECONNECT_S_MAX, pause_s * 2)

    async def _connect(self) -> asyncio.Future[None]:
        """Open a connection that is ready for batches. The future completes when the connection is lost."""
        loop = asyncio.get_running_loop()
        self._lost = lost = loop.create_future()
        self._decoder = ReplyDecoder()
        try:
            async with asyncio.timeout(self._silence_s_max):
                if self._address.path:
                    await loop.create_unix_connection(lambda: self, self._address.path)
                else:
                    await loop.create_connection(
                        lambda: self, self._address.host, self._address.port, ssl=self._address.tls or None
                    )
            await self._ask(self._address.greeting)
            await self._hold_back()
        except BaseException:
            self._greeted = None
            self._drop()
            raise
        self.connections += 1
        self._greeted = None
        self._heard_at = time.monotonic()
        _log.info("redis_connected", connections=self.connections)
        self.batcher.connected()
        return lost

    async def _ask(self, commands: list[list[bytes]], *, errors_max: int = 0) -> list[object]:
        """Replies to commands of the handshake. Raises LinkRefused for an error reply, TimeoutError without a reply.

        Up to `errors_max` errors of a cluster's node, which does not have the key, are replies.
        """
        if not commands:
            return []
        if self._transport is None:
            raise ConnectionResetError("closed during the handshake")
        self._greeted = greeted = asyncio.get_running_loop().create_future()
        self._greeting_replies = []
        self._greeting_replies_due = len(commands)
        self._greeting_errors_left = errors_max
        async with asyncio.timeout(self._silence_s_max):
            self._transport.write(b"".join(encode_command(command) for command in commands))
            await greeted
        return self._greeting_replies

    async def _hold_back(self) -> None:
        """Return when each lane has its known sequence again, or its closing moved the sequence, or after `HELD_S_MAX`.

        Orders wait meanwhile, and end as `dependency_unavailable` at their deadline.
        """
        first: Mapping[int, object] | None = None
        deadline = time.monotonic() + HELD_S_MAX
        while behind := self._marks.behind(found := await self._read_sequences()):
            if first is None:
                first = found
                _log.error("redis_went_back", lanes=behind)
            if all(found[lane] != first.get(lane) for lane in behind):
                break
            if time.monotonic() > deadline:
                _log.error("redis_went_back_not_closed", lanes=behind)
                break
            await asyncio.sleep(HELD_LOOK_S)
        self._marks.start_from(found)

    async def _read_sequences(self) -> dict[int, object]:
        """Reply for each lane of this server."""
        lanes = tuple(self.lanes)
        replies = await self._ask([self._marks.command(lane) for lane in lanes], errors_max=len(lanes))
        return dict(zip(lanes, replies, strict=True))

    def _drop(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio.Protocol --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; the handshake follows."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from it
        self._fd = -1 if self._address.tls else transport.get_extra_info("socket").fileno()

    def data_received(self, data: bytes) -> None:
        """Process replies. First write the batches that now fit, then wake the waiters while Redis works."""
        if self._greeted is not None:
            self._take_greeting(data)
            return
        self._heard_at = time.monotonic()
        try:
            self.batcher.receive(data)
        except ProtocolViolation as error:
            _log.error("redis_reply_malformed", error=str(error))
            self._drop()
        else:
            self._flush()
        self.batcher.settle()

    def connection_lost(self, exc: Exception | None) -> None:
        """Put the orders in flight back into their queues."""
        self._transport = None
        self._fd = -1
        if self.batcher.is_connected:
            self.batcher.lost()
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_exception(exc or ConnectionResetError("closed during the handshake"))
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    def _take_greeting(self, data: bytes) -> None:
        assert self._greeted is not None
        try:
            replies = self._decoder.feed(data)
        except ProtocolViolation as error:
            self._end_greeting(error)
            return
        for reply in replies:
            self._greeting_replies.append(reply)
            self._greeting_replies_due -= 1
            if isinstance(reply, ReplyError) and self._greeting_errors_left and reply.text.startswith(_ELSEWHERE):
                self._greeting_errors_left -= 1
            elif isinstance(reply, ReplyError):
                self._end_greeting(LinkRefused(reply.text))
        if self._greeting_replies_due == 0:
            self._end_greeting(None)

    def _end_greeting(self, error: Exception | None) -> None:
        if self._greeted is None or self._greeted.done():
            return
        if error is None:
            self._greeted.set_result(None)
        else:
            self._greeted.set_exception(error)

    # ---- writing and deadlines ---------------------------------------------------------------------------------

    def _wake(self) -> None:
        # Not at once: callbacks that are already scheduled may add orders to the batch.
        assert self._loop is not None
        self._loop.call_soon(self._flush)
        self._work.set()

    def _flush(self) -> None:
        output = self.batcher.output()
        transport = self._transport
        if not output or transport is None:
            return
        if self._fd >= 0 and transport.get_write_buffer_size() == 0:
            # uvloop would write only after the waiters of the last batch have run. Redis would be idle until then.
            try:
                output = output[os.write(self._fd, output) :]
            except BlockingIOError:
                pass
            except OSError as error:
                _log.warning("redis_write_failed", error=str(error))
                transport.abort()
                return
        if output:
            transport.write(output)

    def _is_idle(self) -> bool:
        """No order is on its way, and the lanes were looked at after the last one."""
        if self.batcher.queued or self.batcher.in_flight:
            return False
        # Without a connection no order wakes the sweep.
        return self.batcher.is_connected and self._sent_at_last_look == self.batcher.stats()["orders_sent"]

    def _look_at_lanes(self) -> None:
        """Read the lanes' sequences, if orders were sent since the last read and that read is complete."""
        sent = self.batcher.stats()["orders_sent"]
        if not self.batcher.is_connected or self._looks_open or sent == self._sent_at_last_look:
            return
        self._sent_at_last_look = sent
        for lane in self.lanes:
            self._looks_open += 1
            self.batcher.call(self._marks.command(lane), partial(self._looked, lane))

    def _looked(self, lane: int, reply: object) -> None:
        self._looks_open -= 1
        if self._marks.is_behind(lane, reply):
            # Another node took the lane over and is behind. The handshake holds the orders back.
            _log.error("redis_went_back_while_connected", lane=lane)
            self._drop()
            return
        self._marks.saw(lane, reply)

    async def _sweep(self, beat: Beat) -> None:
        sweeps = 0
        while True:
            if self._is_idle():
                self._work.clear()
                await wait_within(self._work, until_tick(IDLE_SWEEP_S))
            else:
                await asyncio.sleep(SWEEP_S)
            beat()
            sweeps += 1
            if sweeps % LOOK_EVERY_SWEEPS == 0:
                self._look_at_lanes()
            now_ns = time.monotonic_ns()
            self.batcher.sweep(now_ns)
            self._on_sweep(now_ns)
            error = self.batcher.take_error()
            if error is not None:
                _log.warning("redis_refused_batch", error=error)
            if self.batcher.in_flight == 0:
                self._heard_at = now_ns / 1e9
            elif now_ns / 1e9 - self._heard_at > self._silence_s_max:
                _log.warning("redis_silent", silence_s=round(now_ns / 1e9 - self._heard_at, 1))
                self._drop()
