"""Preferences and subscriptions in the shard of their account. Reads the primary; knows no permissions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from backoffice.stores import Stores
from domain import ids
from runtime.audit import Action, differences, object_name, record
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "notices.sql")
SUBSCRIPTIONS_MAX: Final = 20  # of an account; the oldest go first

SubscriptionRow = tuple[UUID, str, datetime]


class NoAccount(Exception):
    """There is no account with this id."""


@dataclass(frozen=True, slots=True)
class Preferences:
    """`language` is None while the account has chosen none; `email_off` and `push_off` are kinds."""

    language: str | None
    email_off: list[str]
    push_off: list[str]


class NoticeStore:
    """Every method raises NoAccount for a user without one, such as a synthetic buyer."""

    def __init__(self, stores: Stores) -> None:
        """Uses the pools of the stores; owns nothing."""
        self._stores = stores

    async def preferences(self, user_id: UUID) -> Preferences:
        """The choices of the account."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            return await _preferences(connection, user_id)

    async def put_preferences(self, user_id: UUID, chosen: Preferences, *, over: Preferences) -> bool:
        """Replace the choices; False when they are not `over` any more."""
        async with self._changing(user_id) as connection:
            if await _preferences(connection, user_id) != over:
                return False
            before, after = differences(_facts(over), _facts(chosen))
            await connection.execute(SQL["put_preferences"], {"user_id": user_id, **_facts(chosen)})
            await record(connection, Action.USER_CHANGE, object_name("user", user_id), before=before, after=after)
        return True

    async def subscriptions(self, user_id: UUID) -> list[SubscriptionRow]:
        """The subscribed browsers, oldest first."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            await _preferences(connection, user_id)
            rows = await (await connection.execute(SQL["list_subscriptions"], {"user_id": user_id})).fetchall()
        return [(row[0], row[1], row[2]) for row in rows]

    async def subscribe(
        self, user_id: UUID, *, endpoint: str, p256dh: bytes, auth: bytes
    ) -> tuple[SubscriptionRow, bool]:
        """The subscription, and whether it is new. The oldest of the account ends when there are too many."""
        row = {"id": ids.new_uuid7(), "user_id": user_id, "endpoint": endpoint, "p256dh": p256dh, "auth": auth}
        async with self._changing(user_id) as connection:
            made = await (await connection.execute(SQL["put_subscription"], row)).fetchone()
            assert made is not None, "INSERT ... ON CONFLICT DO UPDATE returns its row"
            if made[3]:
                kept = {"user_id": user_id, "kept": SUBSCRIPTIONS_MAX}
                await connection.execute(SQL["drop_oldest_subscriptions"], kept)
                await _record_subscriptions(connection, user_id, after={"push_subscribed": [str(made[0])]})
        return (made[0], made[1], made[2]), bool(made[3])

    async def unsubscribe(self, user_id: UUID, *, endpoint: str | None) -> None:
        """Remove one subscription, or all. One that does not exist is removed already."""
        async with self._changing(user_id) as connection:
            parameters = {"user_id": user_id, "endpoint": endpoint}
            gone: Sequence[TupleRow] = await (
                await connection.execute(SQL["delete_subscriptions"], parameters)
            ).fetchall()
            if gone:
                removed = sorted(str(row[0]) for row in gone)
                await _record_subscriptions(connection, user_id, after={"push_unsubscribed": removed})

    @asynccontextmanager
    async def _changing(self, user_id: UUID) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A transaction that holds the lock of the account."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            if await (await connection.execute(SQL["lock_account"], {"user_id": user_id})).fetchone() is None:
                raise NoAccount
            yield connection


async def _preferences(connection: AsyncConnection[TupleRow], user_id: UUID) -> Preferences:
    cursor = connection.cursor(row_factory=class_row(Preferences))
    found = await (await cursor.execute(SQL["get_preferences"], {"user_id": user_id})).fetchone()
    if found is None:
        raise NoAccount
    return found


def _facts(preferences: Preferences) -> dict[str, Any]:
    return {
        "language": preferences.language,
        "email_off": preferences.email_off,
        "push_off": preferences.push_off,
    }


async def _record_subscriptions(connection: AsyncConnection[TupleRow], user_id: UUID, *, after: dict[str, Any]) -> None:
    """Record a change of subscriptions: ids only, because an address of a push service identifies a browser."""
    await record(connection, Action.USER_CHANGE, object_name("user", user_id), after=after)
