"""PostgreSQL connections whose every call has a deadline on the client's side.

A statement timeout is the server's, so it says nothing about a server that is silent: stopped, cut off, or waiting
for a standby in COMMIT. At the deadline the socket is shut down, and the call fails with `DatabaseSilent`. Nothing
else uses the connection afterwards; its pool makes another one.
"""

from __future__ import annotations

import asyncio
import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.abc import PQGen
from psycopg.rows import Row, TupleRow

CALL_S_MAX: Final = 12.0  # more than the server's own limits, whose errors say more
COMMAND_CONNECT_S_MAX: Final = 10
CANCEL_S_MAX: Final = 0.5  # for a request to cancel, and again for the end of the cancelled call

RV = TypeVar("RV")


class DatabaseSilent(psycopg.OperationalError):
    """A call got no answer within its bound, and its connection was closed.

    A COMMIT may have happened or not. Callers repeat only work that is idempotent.
    """


class BoundedConnection(AsyncConnection[Row]):
    """`call_s_max` bounds each round trip: a statement, a pipeline's, BEGIN, COMMIT, ROLLBACK, a page of a cursor."""

    call_s_max: float = CALL_S_MAX
    unchecked_s: float = 0.0  # see `postgres_pool`
    on_unknown_commit: Callable[[], None] | None = None
    _deadline: asyncio.TimerHandle | None = None
    _is_cut: bool = False
    _answered_at: float = -math.inf
    _after_commit: tuple[Callable[[], None], ...] = ()

    async def wait(self, gen: PQGen[RV], *arguments: Any, **named: Any) -> RV:
        """Run one call of psycopg. Raises DatabaseSilent at the deadline."""
        self._set_deadline(self.call_s_max)
        try:
            result = await super().wait(gen, *arguments, **named)
            self._answered_at = time.monotonic()
            return result
        except psycopg.Error as error:
            if not self._is_cut:
                raise
            raise DatabaseSilent(_silent(self.call_s_max)) from error
        finally:
            self._set_deadline(None)

    def answered_within(self, seconds: float) -> bool:
        """Whether the server answered the last call so lately, and has sent nothing since, such as its farewell."""
        if time.monotonic() - self._answered_at >= seconds:
            return False
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        return not poll.poll(0)

    async def commit(self) -> None:
        """Commit. After DatabaseSilent the outcome is unknown; `on_unknown_commit` is called."""
        calls, self._after_commit = self._after_commit, ()
        try:
            await super().commit()
        except DatabaseSilent:
            if self.on_unknown_commit is not None:
                self.on_unknown_commit()
            raise
        for call in calls:
            call()

    async def rollback(self) -> None:
        """Roll back; drops the calls of `after_commit`."""
        self._after_commit = ()
        await super().rollback()

    def after_commit(self, call: Callable[[], None]) -> None:
        """Call this once when `commit` has succeeded: the end of the block of a pool's connection."""
        self._after_commit += (call,)

    async def cancel_safe(self, *, timeout: float = CANCEL_S_MAX) -> None:  # noqa: ASYNC109 - psycopg's signature
        """Ask the server to cancel the call under way, as psycopg does when the call's task is cancelled.

        A server that does not end the call loses the connection, so that the task ends soon in any case.
        """
        if self._deadline is not None:
            self._set_deadline(2 * CANCEL_S_MAX)
        with suppress(TimeoutError):
            # Without libpq 17, psycopg asks in a thread and without a bound.
            async with asyncio.timeout(CANCEL_S_MAX):
                await super().cancel_safe(timeout=min(timeout, CANCEL_S_MAX))

    def _set_deadline(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if seconds is not None:
            self._deadline = asyncio.get_running_loop().call_later(seconds, self._cut)

    def _cut(self) -> None:
        self._is_cut = True
        _shut_down(self)


class BoundedCommand(Connection[Row]):
    """For programs without an event loop: a command, a migration. As `BoundedConnection`, with a thread for each call.

    Their few calls may pay for the thread.
    """

    call_s_max: float = CALL_S_MAX
    _is_cut: bool = False

    def wait(self, gen: PQGen[RV], *arguments: Any, **named: Any) -> RV:
        """Run one call of psycopg. Raises DatabaseSilent at the deadline."""
        deadline = threading.Timer(self.call_s_max, self._cut)
        deadline.daemon = True
        deadline.start()
        try:
            return super().wait(gen, *arguments, **named)
        except psycopg.Error as error:
            if not self._is_cut:
                raise
            raise DatabaseSilent(_silent(self.call_s_max)) from error
        finally:
            deadline.cancel()

    def _cut(self) -> None:
        self._is_cut = True
        _shut_down(self)


def connect_command(
    dsn: str,
    *,
    autocommit: bool = True,
    call_s_max: float = CALL_S_MAX,
    connect_s_max: int = COMMAND_CONNECT_S_MAX,
) -> BoundedCommand[TupleRow]:
    """A connection of a program without an event loop."""
    connection = BoundedCommand.connect(dsn, autocommit=autocommit, connect_timeout=connect_s_max)
    connection.call_s_max = call_s_max
    return connection


def _silent(seconds: float) -> str:
    return f"no answer within {seconds:g} s, the connection is closed; a COMMIT may have happened or not"


def _shut_down(connection: AsyncConnection[Any] | Connection[Any]) -> None:
    """Shut the socket down: psycopg sees the end of the stream. A copy, because libpq owns the descriptor."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.pgconn.socket)) as copy:
        copy.shutdown(socket.SHUT_RDWR)
