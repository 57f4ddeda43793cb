"""Leaves notices in a shard's outbox, within the caller's transaction. Sends nothing: a dispatcher takes them from there."""

from __future__ import annotations

import orjson
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from domain.notices import Notice, notice_event
from domain.topology import DESTINATION_NOTICES, outbox_partition
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "outbox.sql")


async def leave(connection: AsyncConnection[TupleRow], notice: Notice) -> None:
    """Tell it if, and only if, the connection's transaction commits."""
    row = {
        "destination": DESTINATION_NOTICES,
        "partition": outbox_partition(notice.key),
        "events": orjson.dumps([notice_event(notice)]).decode(),
    }
    await connection.execute(SQL["leave_notice"], row)
