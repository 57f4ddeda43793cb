"""One shard as a move sees it. Every method is one transaction of the shard, and may be repeated."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

from domain.topology import bucket_of_address
from ops.resharding import tables
from ops.resharding.tables import Connection, Fingerprint
from runtime.postgres.sql import load_sql
from runtime.process.errors import OperatorError

SQL = load_sql("ops.resharding", "resharding.sql")
ADDRESSES_MAX: Final = 5_000  # whose buckets are filled in by one transaction
GATE_WAIT_MS_MAX: Final = 300  # all writers of the shard wait behind the freeze meanwhile
Units = dict[tuple[UUID, str], int]


class MoveError(OperatorError):
    """The move cannot go on; the message says why, and what to do."""


class LostGroup(MoveError):
    """Another process has taken the group over."""


class CopyDiffers(MoveError):
    """The copy in the target is not equal to the rows in the source; it was undone."""


class ShardSide:
    """A shard. `connection` is the mover's own and commits by itself outside of transactions."""

    def __init__(self, number: int, connection: Connection) -> None:
        """Uses the connection, does not own it."""
        self.number = number
        self.connection = connection

    async def own_nothing_else(self, owners: Mapping[int, int]) -> None:
        """Close the buckets of other shards here. `owners` are those of all buckets."""
        others = {bucket: owner for bucket, owner in owners.items() if owner != self.number}
        await self._run("own_nothing_else", buckets=list(others), owners=list(others.values()))

    async def closed(self) -> dict[int, tuple[str, int]]:
        """State and other shard of each closed bucket."""
        return {bucket: (state, shard) for bucket, state, shard in await self._run("read_closed")}

    async def fill_buckets(self) -> None:
        """Give entries of the login index that an earlier release wrote their buckets."""
        while rows := await self._run("addresses_without_bucket", limit=ADDRESSES_MAX):
            addresses = [address for (address,) in rows]
            async with self._moving():
                await self._run(
                    "fill_buckets", addresses=addresses, buckets=[bucket_of_address(each) for each in addresses]
                )

    async def freeze(self, buckets: Sequence[int], *, target: int, token: UUID) -> int:
        """Close the buckets for writers; the position of the outbox behind their last events.

        Raises LockNotAvailable, a psycopg error, when a writer of the shard does not end soon.
        """
        async with self.connection.transaction():
            await self.connection.execute(f"SET LOCAL lock_timeout = '{GATE_WAIT_MS_MAX}ms'")
            await self._run("lock_gate")
            await self._run("freeze", buckets=list(buckets), target=target, token=token)
            return await self.outbox_position()

    async def thaw(self, buckets: Sequence[int]) -> None:
        """Open frozen buckets again."""
        await self._run("thaw", buckets=list(buckets))

    async def leave(self, buckets: Sequence[int], *, target: int) -> None:
        """The buckets have left; their rows are still here."""
        await self._run("leave", buckets=list(buckets), target=target)

    async def open(self, buckets: Sequence[int]) -> None:
        """Take writes of buckets that have arrived."""
        await self._run("open", buckets=list(buckets))

    async def outbox_position(self) -> int:
        """The newest id of the outbox."""
        ((position,),) = await self._run("outbox_position")
        return int(position)

    async def outbox_passed(self, position: int) -> bool:
        """Whether all rows up to this one were published."""
        ((passed,),) = await self._run("outbox_passed", position=position)
        return bool(passed)

    async def receive(self, source: ShardSide, buckets: Sequence[int], *, token: UUID) -> Units:
        """Copy the frozen buckets out of their source, verify, and take over their units, all or nothing.

        The units by sale and SKU. Raises CopyDiffers, LostGroup.
        """
        await self._run("arrive", buckets=list(buckets), source=source.number, token=token)
        async with self._moving():
            await self._hold_arriving(buckets, token)
            await tables.copy(source.connection, self.connection, buckets)
            theirs = await tables.fingerprints(source.connection, buckets)
            ours = await tables.fingerprints(self.connection, buckets)
            if ours != theirs:
                raise CopyDiffers(_difference(theirs, ours))
            await self._raise_epochs(await source._run("read_epochs"))
            units = await self._units(buckets)
            await self._change_quotas(units, sign=1)
        return units

    async def undo_receive(self, source: ShardSide, buckets: Sequence[int], *, token: UUID) -> None:
        """Remove a copy whose source is still the owner."""
        await self._run("arrive", buckets=list(buckets), source=source.number, token=token)
        async with self._moving():
            await self._hold_arriving(buckets, token)
            await self._remove(buckets)
            await self._run("do_not_arrive", buckets=list(buckets))

    async def purge(self, buckets: Sequence[int]) -> int:
        """Delete the rows of buckets that have left, with their units; the number of rows."""
        async with self._moving():
            closed = await self.closed()
            if still := [bucket for bucket in buckets if closed.get(bucket, ("open", 0))[0] != "elsewhere"]:
                raise MoveError(f"shard {self.number} still owns bucket {still[0]}: its rows are not deleted")
            return await self._remove(buckets)

    async def count_orders(self, buckets: Sequence[int]) -> dict[int, int]:
        """Orders by bucket; buckets without orders are left out."""
        return dict(await self._run("count_orders", buckets=list(buckets)))

    async def holds_anything(self) -> bool:
        """Whether it has accounts or orders."""
        ((found,),) = await self._run("holds_anything")
        return bool(found)

    async def _remove(self, buckets: Sequence[int]) -> int:
        units = await self._units(buckets)
        deleted = await tables.delete(self.connection, buckets)
        await self._change_quotas(units, sign=-1)
        return deleted

    async def _hold_arriving(self, buckets: Sequence[int], token: UUID) -> None:
        held = await self._run("hold_arriving", buckets=list(buckets), token=token)
        if len(held) != len(buckets):
            raise LostGroup(f"shard {self.number} does not expect all of these buckets from this process")

    async def _raise_epochs(self, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            await self._run("raise_epochs", sale_ids=[row[0] for row in rows], epochs=[row[1] for row in rows])

    async def _units(self, buckets: Sequence[int]) -> Units:
        return {(sale_id, sku): units for sale_id, sku, units in await self._run("units", buckets=list(buckets))}

    async def _change_quotas(self, units: Units, *, sign: int) -> None:
        """Last in its transaction: other writers of these SKUs wait for it."""
        if units:
            for block in ("make_quotas", "lock_quotas", "change_quotas"):
                await self._run(block, sign=sign, **unit_columns(units))

    @asynccontextmanager
    async def _moving(self) -> AsyncIterator[None]:
        async with self.connection.transaction():
            await self._run("moving")
            yield

    async def _run(self, block: str, **values: Any) -> list[tuple[Any, ...]]:
        cursor = await self.connection.execute(SQL[block], values)
        return await cursor.fetchall() if cursor.description else []


def unit_columns(units: Units) -> dict[str, list[Any]]:
    """As parameters of a statement, sorted: the order in which rows are locked."""
    keys = sorted(units)
    return {
        "sale_ids": [sale_id for sale_id, _ in keys],
        "skus": [sku for _, sku in keys],
        "units": [units[key] for key in keys],
    }


def _difference(theirs: Mapping[str, Fingerprint], ours: Mapping[str, Fingerprint]) -> str:
    name = next(name for name, found in theirs.items() if ours[name] != found)
    return f"the copy of {name} differs: {theirs[name].rows} rows in the source, {ours[name].rows} in the target"
