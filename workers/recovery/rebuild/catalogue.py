"""The catalogue side of a rebuild: the published sale, its epoch, the stage of the rebuild, the losses of lanes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from domain.sales import LaneSaleState, SaleDefinition, SaleItem
from reservation.lane import AppliedRestock
from runtime.audit import Action, object_name, record
from runtime.postgres.databases import Pool
from runtime.postgres.sql import load_sql
from workers.recovery.rebuild.errors import Busy, NotPublished, Superseded
from workers.recovery.rebuild.records import unix_ms

SQL = load_sql("workers.recovery.rebuild", "rebuild.sql")


@dataclass(frozen=True, slots=True)
class SaleLook:
    """A published sale at one moment. `stock` is the ledger's, by SKU index; it includes `restocks`."""

    definition: SaleDefinition
    stock: tuple[int, ...]
    restocks: tuple[AppliedRestock, ...]


@dataclass(frozen=True, slots=True)
class Loss:
    """A lane found at `found` although it had reached `floor`; up to `verified` everything was proved stored."""

    lane: int
    found: int
    floor: int
    verified: int


class CatalogueSide:
    """Statements on the catalogue, each a transaction."""

    def __init__(self, pool: Pool, sale_id: UUID) -> None:
        """Uses the pool, does not own it."""
        self._pool = pool
        self._sale_id = sale_id

    async def lock(self, connection: AsyncConnection[TupleRow]) -> None:
        """Exclude other rebuilds of the sale as long as the connection lives; Busy."""
        cursor = await connection.execute(SQL["try_lock"], {"sale_id": self._sale_id})
        row = await cursor.fetchone()
        if row is None or not row[0]:
            raise Busy(f"another rebuild of sale {self._sale_id} is running: wait for its end")

    async def sale(self) -> SaleLook:
        """The sale in the catalogue now; NotPublished."""
        rows = await self._rows("read_sale", {"sale_id": self._sale_id})
        if not rows or rows[0][1] != "published":
            raise NotPublished(f"there is no published sale {self._sale_id}")
        name, _, paused, ended, epoch, version, starts_at, ends_at, hold_s, currency, lanes, items, restocks = rows[0]
        state = LaneSaleState.ENDED if ended else LaneSaleState.PAUSED if paused else LaneSaleState.RUNNING
        definition = SaleDefinition(
            sale_id=self._sale_id,
            name=name,
            epoch=epoch,
            version=version,
            state=state,
            starts_at_ms=unix_ms(starts_at),
            ends_at_ms=unix_ms(ends_at),
            hold_ms=hold_s * 1000,
            currency=currency,
            lanes=tuple(lanes),
            items=tuple(SaleItem(sku, price_minor, limit) for sku, price_minor, limit, _ in items),
        )
        return SaleLook(definition, tuple(item[3] for item in items), tuple(AppliedRestock(*row) for row in restocks))

    async def refuse_moves(self) -> None:
        """Busy while rows of a group of buckets may be in two shards: they would be counted twice."""
        if (await self._rows("moving_buckets", {}))[0][0]:
            raise Busy("a group of buckets moves between shards: finish `flashsale shards move`, then run this again")

    async def stage(self, epoch: int) -> str | None:
        """Stage that the rebuild of an epoch reached; None when no rebuild raised the epoch."""
        rows = await self._rows("read_stage", {"sale_id": self._sale_id, "epoch": epoch})
        return rows[0][0] if rows else None

    async def raise_epoch(self, epoch: int) -> int:
        """Raise the epoch by one; the new epoch. Superseded when the epoch is not `epoch` any more."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(SQL["raise_epoch"], {"sale_id": self._sale_id, "epoch": epoch})
            row = await cursor.fetchone()
            if row is None:
                raise Superseded("another process raised the sale's epoch")
            raised: int = row[0]
            about = object_name("sale", self._sale_id)
            await record(connection, Action.SALE_REBUILD, about, before={"epoch": epoch}, after={"epoch": raised})
        return raised

    async def note_resumed(self, epoch: int, stage: str) -> None:
        """Record that this run continues the rebuild of an epoch, which another operator may have begun."""
        async with self._pool.connection() as connection:
            about = object_name("sale", self._sale_id)
            await record(connection, Action.SALE_REBUILD, about, after={"epoch": epoch, "continued_at": stage})

    async def set_stage(self, epoch: int, stage: str) -> None:
        """Record the stage that this rebuild reached."""
        async with self._pool.connection() as connection:
            await connection.execute(SQL["set_stage"], {"sale_id": self._sale_id, "epoch": epoch, "stage": stage})

    async def mark_restocked(self, keys: Sequence[str]) -> None:
        """Mark restocks as applied to the lane."""
        async with self._pool.connection() as connection:
            await connection.execute(SQL["mark_restocked"], {"sale_id": self._sale_id, "keys": list(keys)})

    async def losses(self, lanes: Collection[int]) -> list[Loss]:
        """Losses of lanes that are not settled."""
        return [Loss(*row) for row in await self._rows("read_losses", {"lanes": list(lanes)})]

    async def note_lost(self, loss: Loss, ranges: Sequence[tuple[int, int]]) -> None:
        """Settle a loss: record these inclusive ranges as lost."""
        async with self._pool.connection() as connection:
            firsts, lasts = [first for first, _ in ranges], [last for _, last in ranges]
            await connection.execute(SQL["note_lost"], {"lane": loss.lane, "firsts": firsts, "lasts": lasts})
            await connection.execute(SQL["settle_loss"], {"lane": loss.lane, "found": loss.found, "floor": loss.floor})
            if ranges:
                about, given_up = object_name("sale", self._sale_id), {"lane": loss.lane, "lost": ranges}
                await record(connection, Action.SALE_REBUILD, about, after=given_up)

    async def given_up(self, lane: int, *, after: int, upto: int) -> set[int]:
        """Places of a lane in (after, upto] whose dead letters were deleted."""
        return {row[0] for row in await self._rows("read_given_up", {"lane": lane, "after": after, "upto": upto})}

    async def lost(self, lanes: Collection[int]) -> dict[int, list[tuple[int, int]]]:
        """All ranges that lanes ever lost, inclusive."""
        lost: dict[int, list[tuple[int, int]]] = {}
        for lane, first, last, _ in await self._rows("read_lost", {"lanes": list(lanes)}):
            lost.setdefault(lane, []).append((first, last))
        return lost

    async def _rows(self, block: str, values: dict[str, Any]) -> list[TupleRow]:
        async with self._pool.connection() as connection:
            return await (await connection.execute(SQL[block], values)).fetchall()
