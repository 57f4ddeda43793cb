"""The catalogue's part of a move: owners, the group on its way, grants. Every method is one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from domain.topology import BUCKETS, Topology
from ops.resharding.shard import SQL, LostGroup, MoveError, Units, unit_columns
from ops.resharding.tables import Connection

LOCK_ID: Final = 0x666C6173_6D6F7665  # "flasmove"


@dataclass(frozen=True, slots=True)
class Group:
    """The group of buckets on its way. `step` is `announced`, `copying` or `switched`."""

    buckets: tuple[int, ...]
    source: int
    target: int
    step: str
    token: UUID


@dataclass(frozen=True, slots=True)
class StoredMap:
    """The map of the catalogue: its version, the owners of moved buckets, whether rows may be in two shards."""

    version: int
    moved: dict[int, int]
    is_switching: bool

    def owners(self, topology: Topology) -> dict[int, int]:
        """The owner of every bucket."""
        return {b: self.moved.get(b, topology.first_shard_of_bucket(b)) for b in range(BUCKETS)}


class CatalogueSide:
    """The catalogue. `connection` is the mover's own and holds the lock of the mover."""

    def __init__(self, connection: Connection) -> None:
        """Uses the connection, does not own it."""
        self._connection = connection

    async def lock(self) -> None:
        """Be the only mover until the connection closes. MoveError while another process is."""
        ((locked,),) = await self._run("lock", lock=LOCK_ID)
        if not locked:
            raise MoveError("another process moves buckets: wait for its end, `flashsale shards status` shows it")
        await self._run("make_map")

    async def map(self) -> StoredMap:
        """The map as it is stored."""
        rows = await self._run("read_map")
        version, switches = rows[0] if rows else (0, 0)
        return StoredMap(version, dict(await self._run("read_owners")), bool(switches % 2))

    async def group(self) -> Group | None:
        """The group on its way."""
        rows = await self._run("read_group")
        return Group(tuple(rows[0][0]), *rows[0][1:]) if rows else None

    async def rebuild_is_open(self) -> bool:
        """Whether a sale is being rebuilt."""
        ((is_open,),) = await self._run("open_rebuilds")
        return bool(is_open)

    async def announce(self, group: Group) -> None:
        """A group begins."""
        values = {"buckets": list(group.buckets), "source": group.source, "target": group.target, "token": group.token}
        await self._run("announce", **values)

    async def take_over(self, token: UUID) -> None:
        """Continue the group under a new token."""
        await self._run("take_over", token=token)

    async def begin_copy(self, token: UUID) -> None:
        """From here on, rows may be in two shards."""
        async with self._held(token, "announced"):
            await self._run("set_step", step="copying")
            await self._run("count_switch")

    async def switch(self, group: Group, units: Units) -> None:
        """The target owns the buckets, and has the grants of their units. The decision of the move: one transaction."""
        async with self._held(group.token, "copying"):
            if units:
                values = unit_columns(units) | {"source": group.source, "target": group.target}
                for block in ("lock_ledger", "take_grants", "give_grants"):
                    await self._run(block, **values)
            ((version,),) = await self._run("raise_version")
            await self._run("set_owners", buckets=list(group.buckets), target=group.target, version=version)
            await self._run("set_step", step="switched")

    async def end(self, token: UUID) -> None:
        """The group has arrived, or was undone: no row is in two shards."""
        async with self._held(token) as step:
            if step != "announced":
                await self._run("count_switch")
            await self._run("end_group")

    @asynccontextmanager
    async def _held(self, token: UUID, *steps: str) -> AsyncIterator[str]:
        async with self._connection.transaction():
            rows = await self._run("hold_group", token=token)
            if not rows or (steps and rows[0][0] not in steps):
                raise LostGroup("another process has taken this group of buckets over")
            yield rows[0][0]

    async def _run(self, block: str, **values: Any) -> list[tuple[Any, ...]]:
        cursor = await self._connection.execute(SQL[block], values)
        return await cursor.fetchall() if cursor.description else []


def groups_of(buckets: Sequence[int], orders: dict[int, int], *, buckets_max: int, orders_max: int) -> list[list[int]]:
    """Buckets in groups of at most `buckets_max`, and of at most `orders_max` orders unless one bucket has more."""
    groups: list[list[int]] = []
    held = 0
    for bucket in buckets:
        more = orders.get(bucket, 0)
        if not groups or len(groups[-1]) >= buckets_max or held + more > orders_max:
            groups.append([])
            held = 0
        groups[-1].append(bucket)
        held += more
    return groups
