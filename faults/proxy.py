"""A TCP proxy that causes faults on demand: cuts, stalls, slows, tears a request, loses a reply, springs a trap.

    client ---> [ FaultProxy ] ---> server

It runs in a thread with its own event loop, so that a busy or stopped test does not delay traffic. It counts all harm:
a fault that did not fire proves nothing. It knows no protocol; a trap looks for marks, byte strings in one write of the
client.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from devstack.children import free_port

CHUNK_BYTES = 256 * 1024
GREETING_BYTES_MAX = 4096
START_S_MAX = 10.0


class Harm(Enum):
    """Effect of a trap on the write that springs it."""

    BEFORE = "before"  # the write is not forwarded
    AFTER = "after"  # the write is forwarded, the reply is dropped: executed, but the client does not know
    TORN = "torn"  # only the first half of the write is forwarded


@dataclass(slots=True)
class Trap:
    """Waits for a client's write that contains all `marks`, on a connection whose first bytes contain `greeting`.

    When it springs, `action` is called in the proxy's thread, and then the connection ends as `harm` says.
    """

    harm: Harm
    marks: tuple[bytes, ...]
    greeting: bytes = b""
    times: int = 1
    skip: int = 0  # matching writes that pass before
    action: Callable[[], object] | None = None
    sprung: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def wants(self, data: bytes, greeting: bytes) -> bool:
        """Whether this write springs the trap; counts `skip` down."""
        if self.sprung >= self.times or self.greeting not in greeting or any(mark not in data for mark in self.marks):
            return False
        if self.skip:
            self.skip -= 1
            return False
        return True

    def spring(self) -> None:
        """Count, and call `action`."""
        self.sprung += 1
        if self.action is not None:
            self.action()
        if self.sprung >= self.times:
            self.done.set()


@dataclass(eq=False, slots=True)
class _Connection:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    greeting: bytes = b""
    trap: Trap | None = None  # the next reply is dropped for this trap

    def abort(self) -> None:
        for writer in (self.client, self.server):
            writer.transport.abort()


@dataclass(slots=True)
class _DelayLine:
    """One direction of a connection: delays each write, keeps the order, and blocks no other connection."""

    writer: asyncio.StreamWriter
    loop: asyncio.AbstractEventLoop
    due_s: float = 0.0
    on_the_way: int = 0

    def write(self, data: bytes, delay_s: float) -> None:
        if not delay_s and not self.on_the_way:
            self.writer.write(data)
            return
        # Distinct times: the loop does not keep the order of timers with equal times.
        self.due_s = max(self.loop.time() + delay_s, self.due_s + 1e-6)
        self.on_the_way += 1
        self.loop.call_at(self.due_s, self._arrive, data)

    def _arrive(self, data: bytes) -> None:
        self.on_the_way -= 1
        if not self.writer.is_closing():
            self.writer.write(data)


class FaultProxy:
    """Forwards one local port to another, for any number of connections. A context manager.

    `counted`: `connections`, `refused`, `cut`, `stalled` (delayed writes), `slowed`, and the harms of traps by name.
    """

    def __init__(self, server_port: int) -> None:
        """Listens on `port` of the loopback address after it is entered."""
        self.server_port = server_port
        self.port = free_port()
        self.counted: Counter[str] = Counter()
        self._connections: set[_Connection] = set()
        self._traps: list[Trap] = []
        self._refusing = False
        self._delay_s = 0.0
        self._loop = asyncio.new_event_loop()
        self._stalled_greeting = b""
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._thread = threading.Thread(target=self._serve, name=f"fault-proxy-{self.port}", daemon=True)
        self._listening = threading.Event()
        self._stopping = asyncio.Event()

    def __enter__(self) -> FaultProxy:
        """Listen. Raises OSError if the port is taken."""
        self._thread.start()
        if not self._listening.wait(START_S_MAX):
            raise OSError(f"the proxy cannot listen on port {self.port}")
        return self

    def __exit__(self, *_: object) -> None:
        """End all connections and the thread."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(START_S_MAX)

    def cut(self) -> int:
        """End all connections now; returns their number."""
        count: int = self._do(self._cut)
        return count

    def refuse(self, refusing: bool) -> None:
        """While true, close new connections at once. Open connections continue."""
        self._do(lambda: setattr(self, "_refusing", refusing))

    def stall(self, stalled: bool, greeting: bytes = b"") -> None:
        """While true, forward nothing in either direction; connections stay open.

        With a `greeting`, only on connections whose first bytes contain it.
        """

        def change() -> None:
            self._stalled_greeting = greeting
            (self._flowing.clear if stalled else self._flowing.set)()

        self._do(change)

    def slow(self, delay_s: float) -> None:
        """Delay each write; 0 ends the delay."""
        self._do(lambda: setattr(self, "_delay_s", delay_s))

    def set_trap(self, trap: Trap) -> Trap:
        """Arm a trap. `trap.done` is set when it has sprung for the last time."""
        self._do(lambda: self._traps.append(trap))
        return trap

    def clear(self) -> None:
        """End all harm: forward everything."""

        def calm() -> None:
            self._traps.clear()
            self._refusing = False
            self._delay_s = 0.0
            self._flowing.set()

        self._do(calm)

    def _do(self, act: Callable[[], Any]) -> Any:
        """Run `act` in the proxy's thread and wait for its result."""

        async def run() -> Any:
            return act()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(START_S_MAX)

    def _cut(self) -> int:
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        self.counted["cut"] += len(connections)
        return len(connections)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._listen())
        finally:
            self._loop.close()

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=1024)
        self._listening.set()
        await self._stopping.wait()
        server.close()
        self._cut()
        handlers = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)

    async def _accept(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if self._refusing:
            self.counted["refused"] += 1
            to_client.transport.abort()
            return
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self.server_port)
        except OSError:  # the server is down
            to_client.transport.abort()
            return
        connection = _Connection(to_client, to_server)
        self._connections.add(connection)
        self.counted["connections"] += 1
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(connection, from_client, to_server, self._to_server))
                group.create_task(self._pump(connection, from_server, to_client, self._to_client))
        finally:
            self._connections.discard(connection)
            connection.abort()

    async def _pump(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        judge: Callable[[_Connection, bytes], Awaitable[bytes]],
    ) -> None:
        late = _DelayLine(writer, self._loop)
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if not self._flowing.is_set() and self._stalled_greeting in connection.greeting + data:
                    self.counted["stalled"] += 1
                    await self._flowing.wait()
                data = await judge(connection, data)
                if not data:
                    break
                if self._delay_s:
                    self.counted["slowed"] += 1
                late.write(data, self._delay_s)
                await writer.drain()
        connection.abort()

    async def _to_server(self, connection: _Connection, data: bytes) -> bytes:
        """The part of a client's write to forward; empty ends the connection."""
        if len(connection.greeting) < GREETING_BYTES_MAX:
            connection.greeting += data[: GREETING_BYTES_MAX - len(connection.greeting)]
        trap = next((trap for trap in self._traps if trap.wants(data, connection.greeting)), None)
        if trap is None or connection.trap is not None:
            return data
        if trap.harm is Harm.AFTER:
            connection.trap = trap
            return data
        self.counted[trap.harm.value] += 1
        if trap.harm is Harm.TORN:
            connection.server.write(data[: len(data) // 2])
            await connection.server.drain()
            await asyncio.sleep(0.05)  # the half must leave before the connection ends
        trap.spring()
        return b""

    async def _to_client(self, connection: _Connection, data: bytes) -> bytes:
        """The part of a server's write to forward; empty ends the connection."""
        trap = connection.trap
        if trap is None:
            return data
        connection.trap = None
        if trap.sprung < trap.times:
            self.counted[trap.harm.value] += 1
            trap.spring()
        return b""
