"""Reads the audit log of all databases as one list, and deletes old entries."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from psycopg.rows import class_row

from backoffice.stores import Stores
from runtime.postgres.databases import Database
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "audit.sql")
CLOCKS_DIFFER_MAX: Final = timedelta(minutes=1)  # between the process that makes an id and the database


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of `audit.entries`."""

    id: UUID
    at: datetime
    actor: str
    action: str
    object: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    client: str | None
    request_id: str | None
    outcome: str
    times: int


@dataclass(frozen=True, slots=True)
class Filters:
    """Conditions of a list; None admits every entry. `actions` and `objects` are alternatives."""

    actor: str | None = None
    actions: tuple[str, ...] | None = None
    objects: tuple[str, ...] | None = None
    since: datetime | None = None


class AuditLog:
    """The entries of the catalogue and of all shards."""

    def __init__(self, stores: Stores) -> None:
        """Uses the stores, owns nothing."""
        self.databases: tuple[Database, ...] = (stores.catalogue, *stores.shards)

    async def page(self, filters: Filters, *, before: UUID | None, limit: int) -> list[Entry]:
        """Entries older than `before`, newest first. Ids begin with their time: the first rows of each database are
        enough."""
        since = filters.since
        parameters = {
            "actor": filters.actor,
            "actions": None if filters.actions is None else list(filters.actions),
            "objects": None if filters.objects is None else list(filters.objects),
            "since": since,
            "from_id": None if since is None else first_id(since - CLOCKS_DIFFER_MAX),
            "before_id": before,
            "limit": limit,
        }
        pages = await asyncio.gather(*(_page(database, parameters) for database in self.databases))
        return sorted((entry for page in pages for entry in page), key=lambda entry: entry.id, reverse=True)[:limit]


async def delete_old(database: Database, before: datetime, *, limit: int) -> int:
    """Delete at most `limit` entries of before a time, oldest first; their number."""
    parameters = {"before": before, "before_id": first_id(before), "limit": limit}
    async with database.connection() as connection:
        cursor = await connection.execute(SQL["delete_old"], parameters)
        return len(await cursor.fetchall())


def first_id(time: datetime) -> UUID:
    """A bound: at most every UUIDv7 of this and later milliseconds, above every id of earlier ones."""
    return UUID(int=max(int(time.timestamp() * 1000), 0) << 80)


async def _page(database: Database, parameters: dict[str, Any]) -> list[Entry]:
    async with database.connection() as connection:
        cursor = connection.cursor(row_factory=class_row(Entry))
        return await (await cursor.execute(SQL["page"], parameters, prepare=False)).fetchall()
