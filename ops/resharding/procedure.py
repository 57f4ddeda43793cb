"""Moves groups of buckets, one after the other. Every step may be the last one of a process: the next run goes on.

    step         transaction in      a crash after it leaves
    announced    catalogue           nothing but the announcement
    frozen       source              writers that wait for the buckets of the group
    drained      -                   as before; all events of the buckets are published
    copying      catalogue           as before; comparisons over all shards wait
    copied       target              a copy that no process uses
    switched     catalogue           the target as the owner: the decision
    left         source              writers that go to the target, and wait there
    opened       target              the group in use; old rows in the source
    known        -                   as before; every process has the new map
    purged       source              the announcement
    ended        catalogue           nothing

Before the decision, the next run undoes and begins again; after it, the next run finishes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final
from uuid import uuid4

import psycopg
from psycopg.errors import LockNotAvailable
from redis.asyncio import Redis

from domain.topology import Topology
from ops.resharding import tables
from ops.resharding.catalogue import CatalogueSide, Group, groups_of
from ops.resharding.shard import CopyDiffers, MoveError, ShardSide
from runtime.buckets import following

BUCKETS_PER_GROUP: Final = 16
ORDERS_PER_GROUP_MAX: Final = 4_000  # frozen at once
FREEZE_ATTEMPTS_MAX: Final = 100
FREEZE_PAUSE_S: Final = 0.1
DRAINED_S_MAX: Final = 60.0  # for the outbox, while nothing is frozen
FROZEN_S_MAX: Final = 2.0  # for the outbox, while the group is frozen; then it is thawed
GROUP_ATTEMPTS_MAX: Final = 10
KNOWN_BEFORE_OPEN_S_MAX: Final = 0.5  # the buckets are frozen meanwhile
KNOWN_S_MAX: Final = 2 * following.SILENT_S_MAX
POLL_S: Final = 0.01
BETWEEN_GROUPS_S: Final = 0.2  # comparisons over all shards take their snapshots now


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of one group, for people and for programs. `frozen_ms`: how long the writers of the group waited."""

    step: str
    buckets: tuple[int, ...]
    source: int
    target: int
    done: int
    total: int
    frozen_ms: float | None = None


class Mover:
    """See the module. `report` is called after each step, and may end the move by an exception."""

    def __init__(
        self,
        catalogue: CatalogueSide,
        shards: Mapping[int, ShardSide],
        redis: Redis,
        topology: Topology,
        *,
        report: Callable[[Progress], None],
        frozen_s_max: float = FROZEN_S_MAX,
    ) -> None:
        """Uses its arguments, owns nothing. The lock of the catalogue is held."""
        self._catalogue = catalogue
        self._shards = shards
        self._redis = redis
        self._topology = topology
        self._report = report
        self._frozen_s_max = frozen_s_max
        self._done = self._total = 0

    async def prepare(self) -> None:
        """Finish what a dead process left; close in each shard the buckets that it does not own. Repeatable."""
        await self.resume()
        stored = await self._catalogue.map()
        owners = stored.owners(self._topology)
        for shard in self._shards.values():
            await shard.own_nothing_else(owners)
            await shard.fill_buckets()
        await self._publish()

    async def resume(self) -> None:
        """Undo or finish the group of a dead process."""
        group = await self._catalogue.group()
        if group is None:
            return
        group = replace(group, token=uuid4())
        await self._catalogue.take_over(group.token)
        if group.step == "switched":
            await self._finish(group, frozen_at=None)
        else:
            await self._undo(group)

    async def move(self, buckets: Sequence[int], target: int) -> int:
        """Move the buckets that are not there yet; their number. `prepare` has been called."""
        owners = (await self._catalogue.map()).owners(self._topology)
        by_source: dict[int, list[int]] = {}
        for bucket in sorted(set(buckets)):
            if owners[bucket] != target:
                by_source.setdefault(owners[bucket], []).append(bucket)
        self._total = sum(map(len, by_source.values()))
        concerned = [self._shards[number].connection for number in (*by_source, target)] if by_source else []
        try:
            for connection in concerned:
                await tables.make_indexes(connection)
            for source, listed in by_source.items():
                await self._move_from(source, listed, target)
        finally:
            for connection in concerned:
                with suppress(psycopg.Error):  # of a server that is away: the next run drops them
                    await tables.drop_indexes(connection)
        return self._total

    async def _move_from(self, source: int, buckets: Sequence[int], target: int) -> None:
        orders = await self._shards[source].count_orders(buckets)
        for group in groups_of(buckets, orders, buckets_max=BUCKETS_PER_GROUP, orders_max=ORDERS_PER_GROUP_MAX):
            await self._move_group(tuple(group), source, target)
            self._done += len(group)
            await asyncio.sleep(BETWEEN_GROUPS_S)

    async def _move_group(self, buckets: tuple[int, ...], source: int, target: int) -> None:
        for _ in range(GROUP_ATTEMPTS_MAX):
            await self._wait_for_outbox(source)
            group = Group(buckets, source, target, "announced", uuid4())
            await self._catalogue.announce(group)
            # After the announcement, which a rebuild looks for after its own: at least one sees the other.
            if await self._catalogue.rebuild_is_open():
                await self._undo(group)
                raise MoveError("a sale is being rebuilt: finish `flashsale rebuild`, then run this command again")
            self._tell("announced", group)
            try:
                if await self._try_group(group):
                    return
            except CopyDiffers:
                await self._undo(group)
                raise
        raise MoveError(
            f"the event log took the events of shard {source} too slowly, {GROUP_ATTEMPTS_MAX} times in a row: nothing is "
            "frozen; see to the dispatcher and the event log, then run this command again"
        )

    async def _try_group(self, group: Group) -> bool:
        """Whether the group has moved; it was thawed if the outbox does not get empty."""
        source, target = self._shards[group.source], self._shards[group.target]
        await source.fill_buckets()
        position = await self._freeze(source, group)
        frozen_at = time.monotonic()
        self._tell("frozen", group)
        if not await self._outbox_passed(source, position, self._frozen_s_max):
            await self._undo(group)
            return False
        self._tell("drained", group)
        await self._catalogue.begin_copy(group.token)
        self._tell("copying", group)
        units = await target.receive(source, group.buckets, token=group.token)
        self._tell("copied", group)
        await self._catalogue.switch(group, units)
        self._tell("switched", group)
        await self._finish(group, frozen_at=frozen_at)
        return True

    async def _finish(self, group: Group, *, frozen_at: float | None) -> None:
        """Everything behind the decision. Repeatable."""
        source, target = self._shards[group.source], self._shards[group.target]
        await source.leave(group.buckets, target=group.target)
        self._tell("left", group)
        # Usually every process has the new map before the first write in the target: none shows an old row.
        version = await self._publish()
        await self._is_known(version, KNOWN_BEFORE_OPEN_S_MAX)
        await target.open(group.buckets)
        self._tell("opened", group, None if frozen_at is None else (time.monotonic() - frozen_at) * 1000)
        if not await self._is_known(version, KNOWN_S_MAX):
            raise MoveError("a process does not take the new map over: `flashsale shards status` names it")
        self._tell("known", group)
        await source.purge(group.buckets)
        self._tell("purged", group)
        await self._catalogue.end(group.token)
        self._tell("ended", group)

    async def _undo(self, group: Group) -> None:
        """Remove the copy, open the source again. Repeatable; never behind the decision."""
        source = self._shards[group.source]
        await self._shards[group.target].undo_receive(source, group.buckets, token=group.token)
        await source.thaw(group.buckets)
        await self._catalogue.end(group.token)
        self._tell("undone", group)

    async def _freeze(self, source: ShardSide, group: Group) -> int:
        for _ in range(FREEZE_ATTEMPTS_MAX):
            try:
                return await source.freeze(group.buckets, target=group.target, token=group.token)
            except LockNotAvailable:
                await asyncio.sleep(FREEZE_PAUSE_S)
        raise MoveError(
            f"a transaction of shard {source.number} does not end: see pg_stat_activity, then run this again"
        )

    async def _wait_for_outbox(self, source: int) -> None:
        shard = self._shards[source]
        if not await self._outbox_passed(shard, await shard.outbox_position(), DRAINED_S_MAX):
            raise MoveError(
                f"the outbox of shard {source} is not published: start the dispatcher and the event log, then run this again"
            )

    async def _outbox_passed(self, shard: ShardSide, position: int, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not await shard.outbox_passed(position):
            if time.monotonic() > end:
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def _publish(self) -> int:
        stored = await self._catalogue.map()
        await following.publish(self._redis, version=stored.version, owners=stored.moved)
        return stored.version

    async def _is_known(self, version: int, seconds: float) -> bool:
        """Whether every process has the map. One that says nothing has ended, or finds the buckets closed."""
        end = time.monotonic() + seconds
        while any(each.version < version for each in await following.known(self._redis)):
            if time.monotonic() > end:
                return False
            await asyncio.sleep(POLL_S)
        return True

    def _tell(self, step: str, group: Group, frozen_ms: float | None = None) -> None:
        self._report(
            Progress(step, group.buckets, group.source, group.target, self._done, self._total, frozen_ms)
        )  # fmt: skip


def unprepared(known: Sequence[following.Known], target: int) -> list[str]:
    """The processes that do not know the target yet."""
    return [each.process for each in known if each.shards <= target]
