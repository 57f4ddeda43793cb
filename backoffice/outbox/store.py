"""Enqueues notices in the outbox of a shard, in the caller's transaction. Sends nothing; the dispatcher does."""

from __future__ import annotations

import orjson
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from domain.notices import Notice, notice_event
from domain.topology import DESTINATION_NOTICES, outbox_partition
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "store.sql")


async def enqueue_notice(connection: AsyncConnection[TupleRow], notice: Notice) -> None:
    """Enqueue the notice in the caller's transaction."""
    row = {
        "destination": DESTINATION_NOTICES,
        "partition": outbox_partition(notice.key),
        "events": orjson.dumps([notice_event(notice)]).decode(),
    }
    await connection.execute(SQL["enqueue_notice"], row)
