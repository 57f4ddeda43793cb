"""Keeps the drafts whose buyer is to be told on a channel: one query for each shard and batch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from domain.notices import Channel
from domain.topology import Topology
from runtime.postgres.sql import load_sql
from workers.announcer.events import Draft
from workers.shards import ShardAway, Shards

SQL = load_sql(__package__, "recipients.sql")


class Recipients:
    """Most buyers of a load test have no account: their drafts end here, for a probe of an index each."""

    def __init__(self, shards: Shards, topology: Topology, channel: Channel) -> None:
        """Uses its arguments, owns nothing."""
        self._shards = shards
        self._topology = topology
        self._channel = channel
        self._statement = SQL[channel.value]

    async def are_none(self) -> bool:
        """Whether certainly no account is reached on the channel: no browser is subscribed in any shard."""
        if self._channel is not Channel.PUSH:
            return False
        shards = range(self._topology.shards)
        return not any(await asyncio.gather(*(self._has_subscriptions(shard) for shard in shards)))

    async def _has_subscriptions(self, shard: int) -> bool:
        try:
            async with self._shards.connection(shard) as connection:
                row = await (await connection.execute(SQL["has_push"])).fetchone()
        except ShardAway:
            return True
        return row is None or bool(row[0])

    async def wanted(self, drafts: Sequence[Draft]) -> list[Draft]:
        """The drafts of buyers who have an account (for push: a subscribed browser) and did not switch the kind off.

        Drafts of a shard that is away are kept: the sender decides on them when the shard is back, and the other
        shards' are not held up.
        """
        by_shard: dict[int, set[UUID]] = {}
        for draft in drafts:
            by_shard.setdefault(self._topology.shard_of_user(draft.user_id), set()).add(draft.user_id)
        found = await asyncio.gather(*(self._muted(shard, users) for shard, users in by_shard.items()))
        muted = {user_id: kinds for users in found for user_id, kinds in users.items()}
        return [draft for draft in drafts if draft.user_id in muted and draft.kind.value not in muted[draft.user_id]]

    async def _muted(self, shard: int, user_ids: Iterable[UUID]) -> Mapping[UUID, frozenset[str]]:
        """The kinds that each of the users switched off; a user without an account is missing."""
        asked = list(user_ids)
        try:
            async with self._shards.connection(shard) as connection:
                rows = await (await connection.execute(self._statement, {"user_ids": asked})).fetchall()
        except ShardAway:
            return dict.fromkeys(asked, frozenset())
        return {user_id: frozenset(kinds) for user_id, kinds in rows}
