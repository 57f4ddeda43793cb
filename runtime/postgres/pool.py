"""PostgreSQL pools: bounded size, bounded waits, no retries: only the caller retries."""

from __future__ import annotations

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool
from pydantic import SecretStr

POSTGRES_CONNECT_S = 5
POSTGRES_WAITING_MAX = 64
# A peer that vanished without a FIN is detected after this time; the kernel's default takes a quarter of an hour.
_POSTGRES_UNACKNOWLEDGED_MS = 10_000


def postgres_pool(dsn: SecretStr, *, size_max: int = 4) -> AsyncConnectionPool[AsyncConnection[TupleRow]]:
    """A pool that is not open yet. `await pool.open()` returns at once; connections are made in the background.

    At most `POSTGRES_WAITING_MAX` callers wait for a connection, each at most `POSTGRES_CONNECT_S`. A connection that a
    server restart broke is replaced before it is handed out. No server-side prepared statements, because PgBouncer
    before 1.22 does not support them.
    """
    return AsyncConnectionPool(
        dsn.get_secret_value(),
        min_size=1,
        max_size=size_max,
        open=False,
        timeout=POSTGRES_CONNECT_S,
        max_waiting=POSTGRES_WAITING_MAX,
        max_idle=300,
        # The pool doubles the pause between its own retries; ending them early lets the next caller try at once.
        reconnect_timeout=2.0,
        check=AsyncConnectionPool.check_connection,
        kwargs={
            "connect_timeout": POSTGRES_CONNECT_S,
            "prepare_threshold": None,
            "tcp_user_timeout": _POSTGRES_UNACKNOWLEDGED_MS,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 2,
        },
    )
