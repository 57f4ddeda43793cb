"""Records entries in the caller's transaction: an entry is committed with its change, or neither is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from domain import ids
from runtime.audit.acts import acting
from runtime.audit.entries import DONE, Action, NewEntry, members_json
from runtime.postgres.connection import BoundedConnection
from runtime.postgres.sql import load_sql

SQL = load_sql("runtime.audit", "audit.sql")


async def record(
    connection: AsyncConnection[TupleRow],
    action: Action,
    object_: str,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    actor: str | None = None,
    outcome: str = DONE,
) -> None:
    """Record one entry; arguments are those of `NewEntry`."""
    entry = NewEntry(action=action, object=object_, before=before, after=after, actor=actor, outcome=outcome)
    await record_all(connection, [entry])


async def record_all(connection: AsyncConnection[TupleRow], entries: Sequence[NewEntry]) -> None:
    """Record entries in this order. The act knows them after the commit."""
    if not entries:
        return
    act = acting()
    rows = [
        {
            "id": ids.new_uuid7(),
            "actor": entry.actor or act.actor,
            "action": entry.action,
            "object": entry.object,
            "before": members_json(entry.before),
            "after": members_json(entry.after),
            "client": act.client,
            "request_id": act.request_id,
            "outcome": entry.outcome,
            "times": 1,
        }
        for entry in entries
    ]
    if len(rows) == 1:
        await connection.execute(SQL["add_entry"], rows[0])
    else:
        async with connection.cursor() as cursor:
            await cursor.executemany(SQL["add_entry"], rows)
    if isinstance(connection, BoundedConnection):
        connection.after_commit(partial(act.recorded.extend, entries))
