"""The browsers of an account, in its shard, as the push sender reads them."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from domain.notices import Notice
from domain.topology import Topology
from runtime.postgres.sql import load_sql
from workers.notifications.push_services import Subscription
from workers.shards import Shards

SQL = load_sql(__package__, "subscriptions.sql")


@dataclass(frozen=True, slots=True)
class Browsers:
    """The subscriptions of an account, and its choices."""

    subscriptions: tuple[Subscription, ...]
    language: str | None
    muted: bool


class Subscriptions:
    """Every method raises ShardAway, at once while the shard is known to be away."""

    def __init__(self, shards: Shards, topology: Topology) -> None:
        """Uses its arguments, owns nothing."""
        self._shards = shards
        self._topology = topology

    @property
    def problem(self) -> str | None:
        """The shards that did not answer at the last request; None when all did."""
        return self._shards.problem

    async def of(self, user_id: UUID, notice: Notice) -> Browsers:
        """The account's browsers; none for a user without an account."""
        parameters = {"user_id": user_id, "kind": notice.kind.value}
        async with self._shards.connection(self._topology.shard_of_user(user_id)) as connection:
            rows = await (await connection.execute(SQL["subscriptions"], parameters)).fetchall()
        found = tuple(Subscription(row[0], row[1], bytes(row[2]), bytes(row[3])) for row in rows)
        return Browsers(found, rows[0][4] if rows else None, bool(rows and rows[0][5]))

    async def delete(self, user_id: UUID, subscription: Subscription) -> None:
        """The subscription has ended."""
        gone = {"id": subscription.id, "p256dh": subscription.p256dh, "auth": subscription.auth}
        async with self._shards.connection(self._topology.shard_of_user(user_id)) as connection:
            await connection.execute(SQL["delete_subscription"], gone)
