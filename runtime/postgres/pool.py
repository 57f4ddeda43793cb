"""PostgreSQL pools: bounded size, bounded waits, bounded calls, no retries: only the caller retries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool
from pydantic import SecretStr

from runtime.postgres import columns
from runtime.postgres.connection import CALL_S_MAX, BoundedConnection

Connection = AsyncConnection[TupleRow]

POSTGRES_CONNECT_S = 5
POSTGRES_WAITING_MAX = 64
CHECK_S_MAX = 1.0  # for a pooled connection's sign of life, before it is handed out
POLL_UNCHECKED_S = 3.0  # of a loop that asks at least so often
# As long as a check and the wait for another connection take: a silent server shows as soon as with a check.
POLL_CALL_S_MAX = CHECK_S_MAX + POSTGRES_CONNECT_S
# A peer that vanished without a FIN is detected after this time; the kernel's default takes a quarter of an hour.
_POSTGRES_UNACKNOWLEDGED_MS = 10_000


def postgres_pool(
    dsn: SecretStr,
    *,
    size_max: int = 4,
    call_s_max: float = CALL_S_MAX,
    autocommit: bool = False,
    unchecked_s: float = 0.0,
    on_unknown_commit: Callable[[], None] | None = None,
) -> AsyncConnectionPool[AsyncConnection[TupleRow]]:
    """A pool that is not open yet. `await pool.open()` returns at once; connections are made in the background.

    `unchecked_s` is for loops that ask all the time: a connection that answered so lately is handed out after a look at
    its socket alone, which saves a round trip. A server that falls silent costs such a loop one call of `call_s_max`.

    At most `POSTGRES_WAITING_MAX` callers wait for a connection, each at most `POSTGRES_CONNECT_S`. A connection that a
    server restart broke is replaced before it is handed out. A call that gets no answer within `call_s_max` raises
    `DatabaseSilent`; `on_unknown_commit` is called when that call was a COMMIT. With `autocommit` each statement is a
    transaction, which saves two round trips where no caller needs more than one statement. No server-side prepared
    statements, because PgBouncer before 1.22 does not support them.
    """

    async def configure(connection: AsyncConnection[TupleRow]) -> None:
        assert isinstance(connection, BoundedConnection)
        connection.call_s_max = call_s_max
        connection.unchecked_s = unchecked_s
        connection.on_unknown_commit = on_unknown_commit
        columns.teach(connection)
        await pin_session(connection)
        if autocommit:
            await connection.set_autocommit(True)

    return AsyncConnectionPool(
        dsn.get_secret_value(),
        connection_class=BoundedConnection[TupleRow],
        min_size=1,
        max_size=size_max,
        open=False,
        timeout=POSTGRES_CONNECT_S,
        max_waiting=POSTGRES_WAITING_MAX,
        max_idle=300,
        # The pool doubles the pause between its own retries; ending them early lets the next caller try at once.
        reconnect_timeout=2.0,
        configure=configure,
        check=_check,
        kwargs={
            "connect_timeout": POSTGRES_CONNECT_S,
            "prepare_threshold": None,
            "tcp_user_timeout": _POSTGRES_UNACKNOWLEDGED_MS,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 2,
        },
    )


@asynccontextmanager
async def single_statements(pool: AsyncConnectionPool[AsyncConnection[TupleRow]]) -> AsyncIterator[Connection]:
    """A connection of a pool without `autocommit` on which each statement is a transaction: two round trips fewer."""
    async with pool.connection() as connection:
        await connection.set_autocommit(True)
        try:
            yield connection
        finally:
            if not connection.closed:
                await connection.set_autocommit(False)


async def pin_session(connection: AsyncConnection[TupleRow]) -> None:
    """Set what decides the form of times, whatever the server, the database or the role has as its default.

    With SET, not with `options` at the start of the session: PgBouncer follows the former and refuses the latter.
    """
    await connection.set_autocommit(True)
    await connection.execute("SET TimeZone TO 'UTC'; SET DateStyle TO 'ISO, MDY'; SET IntervalStyle TO 'postgres'")
    await connection.set_autocommit(False)


async def _check(connection: AsyncConnection[TupleRow]) -> None:
    """Raise an error for a connection that does not work any more."""
    assert isinstance(connection, BoundedConnection)
    if connection.answered_within(connection.unchecked_s):
        return
    usual_s = connection.call_s_max
    connection.call_s_max = min(CHECK_S_MAX, usual_s)
    try:
        await AsyncConnectionPool.check_connection(connection)
    finally:
        connection.call_s_max = usual_s
