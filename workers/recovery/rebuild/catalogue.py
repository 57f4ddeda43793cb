"""The catalogue's side of a rebuild: the sale as it is sold, its epoch, the rebuild's stage, what lanes lost."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from domain.sales import LaneSaleState, SaleDefinition, SaleItem
from runtime.postgres.sql import load_sql
from workers.recovery.losses import Pool
from workers.recovery.rebuild.errors import Busy, NotPublished, Superseded
from workers.recovery.rebuild.records import unix_ms

SQL = load_sql("workers.recovery.rebuild", "rebuild.sql")


@dataclass(frozen=True, slots=True)
class SaleLook:
    """A published sale at one moment. `stock` is the ledger's, by SKU index; `restocks` are in it: (key, index, quantity)."""

    definition: SaleDefinition
    stock: tuple[int, ...]
    restocks: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Loss:
    """A lane found at `found` that had come to `floor`; up to `verified` everything was proved stored."""

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
        """Keep other rebuilds of the sale out as long as the connection lives; Busy."""
        cursor = await connection.execute(SQL["try_lock"], {"sale_id": self._sale_id})
        row = await cursor.fetchone()
        if row is None or not row[0]:
            raise Busy(f"another rebuild of sale {self._sale_id} is at work")

    async def sale(self) -> SaleLook:
        """The sale as the catalogue has it now; NotPublished."""
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
        return SaleLook(definition, tuple(item[3] for item in items), tuple((k, i, q) for k, i, q in restocks))

    async def stage(self, epoch: int) -> str | None:
        """How far the rebuild of an epoch came; None when no rebuild raised it."""
        rows = await self._rows("read_stage", {"sale_id": self._sale_id, "epoch": epoch})
        return rows[0][0] if rows else None

    async def raise_epoch(self, epoch: int) -> int:
        """From this epoch to the next, which is answered; Superseded when it is another one by now."""
        rows = await self._rows("raise_epoch", {"sale_id": self._sale_id, "epoch": epoch})
        if not rows:
            raise Superseded("the sale's epoch was raised by somebody else")
        raised: int = rows[0][0]
        return raised

    async def set_stage(self, epoch: int, stage: str) -> None:
        """Remember how far this rebuild came."""
        async with self._pool.connection() as connection:
            await connection.execute(SQL["set_stage"], {"sale_id": self._sale_id, "epoch": epoch, "stage": stage})

    async def mark_restocked(self, keys: Sequence[str]) -> None:
        """The lane has these restocks."""
        async with self._pool.connection() as connection:
            await connection.execute(SQL["mark_restocked"], {"sale_id": self._sale_id, "keys": list(keys)})

    async def losses(self, lanes: Collection[int]) -> list[Loss]:
        """Losses of lanes whose gaps were not noted yet."""
        return [Loss(*row) for row in await self._rows("read_losses", {"lanes": list(lanes)})]

    async def note_lost(self, loss: Loss, ranges: Sequence[tuple[int, int]]) -> None:
        """Settle a loss: these inclusive ranges are gone."""
        async with self._pool.connection() as connection:
            firsts, lasts = [first for first, _ in ranges], [last for _, last in ranges]
            await connection.execute(SQL["note_lost"], {"lane": loss.lane, "firsts": firsts, "lasts": lasts})
            await connection.execute(SQL["settle_loss"], {"lane": loss.lane, "found": loss.found, "floor": loss.floor})

    async def lost(self, lanes: Collection[int]) -> dict[int, list[tuple[int, int]]]:
        """What lanes lost, ever: inclusive ranges."""
        lost: dict[int, list[tuple[int, int]]] = {}
        for lane, first, last, _ in await self._rows("read_lost", {"lanes": list(lanes)}):
            lost.setdefault(lane, []).append((first, last))
        return lost

    async def _rows(self, block: str, values: dict[str, Any]) -> list[TupleRow]:
        async with self._pool.connection() as connection:
            return await (await connection.execute(SQL[block], values)).fetchall()
