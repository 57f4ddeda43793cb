"""Reads the inputs of verdicts: lanes in Redis, the catalogue's ledger, the shards. Judges nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from psycopg.rows import TupleRow
from redis.asyncio import Redis

from domain import topology
from domain.sales import SaleDefinition
from reservation.documents import SaleDocuments
from reservation.reading import read_lane
from runtime.dead_letters import PAGE_LETTERS_MAX, DeadLetters
from runtime.postgres.databases import Pool
from runtime.postgres.sql import load_sql
from runtime.redis.clock import now_ms
from workers.reconciler.stock import LaneLook, LedgerLook, LostRange, UnitsLook, UnknownTail

STATEMENT_S_MAX = 60
POISON_PAGES_MAX = 50

_SQL = load_sql("workers.reconciler", "reconciler.sql")


class Reading:
    """Read access to everything that the reconciler compares; `shards` in shard order."""

    def __init__(self, *, redis: Redis, catalogue: Pool, shards: Sequence[Pool], letters: DeadLetters) -> None:
        """Uses the clients, does not own them."""
        self._redis = redis
        self._documents = SaleDocuments(redis)
        self._catalogue = catalogue
        self._shards = shards
        self._letters = letters

    async def now_ms(self) -> int:
        """Redis time."""
        return await now_ms(self._redis)

    async def sales(self, *, only: UUID | None) -> list[SaleDefinition]:
        """Published sales by their documents, sorted by id."""
        listed = await self._documents.listed()
        wanted = sorted(sale_id for sale_id in listed if only is None or sale_id == only)
        return [sale for sale in await self._documents.read(wanted) if sale is not None]

    async def lanes(self, sales: Iterable[SaleDefinition]) -> dict[int, LaneLook]:
        """Every lane of the sales, each read by one command: its sequence and its counters are of one moment."""
        by_lane: dict[int, list[SaleDefinition]] = {}
        for sale in sales:
            for lane in sale.lanes:
                by_lane.setdefault(lane, []).append(sale)
        return {lane: await self._lane(lane, listed) for lane, listed in sorted(by_lane.items())}

    async def _lane(self, lane: int, sales: Sequence[SaleDefinition]) -> LaneLook:
        state = await read_lane(self._redis, lane, {sale.sale_id: len(sale.items) for sale in sales})
        stocks = {sale_id: there.full_stock for sale_id, there in state.sales.items()}
        problems = {sale.sale_id: state.sales[sale.sale_id].problem(sale.epoch) for sale in sales}
        closed = {sale_id: problem for sale_id, problem in problems.items() if problem is not None}
        malformed = {sale_id: there.malformed for sale_id, there in state.sales.items() if there.malformed}
        return LaneLook(state.seq, stocks, closed, malformed)

    async def ledger(self, sale_ids: Collection[UUID]) -> dict[UUID, dict[str, LedgerLook]]:
        """Ledger rows by sale and SKU."""
        ledger: dict[UUID, dict[str, LedgerLook]] = {sale_id: {} for sale_id in sale_ids}
        rows = await _rows(self._catalogue, "read_ledger", {"sale_ids": list(sale_ids)})
        for sale_id, sku, stock, granted, shard, total, seq in rows:
            look = ledger[sale_id].setdefault(sku, LedgerLook(stock, granted))
            if shard >= 0:
                look.grants[shard] = (total, seq)
        return ledger

    async def units(self) -> list[dict[UUID, dict[str, UnitsLook]]]:
        """Per shard, by sale and SKU. Reads every order, so it is for deep looks only."""
        shards = []
        for rows in await self._of_all_shards("read_units", {}):
            units: dict[UUID, dict[str, UnitsLook]] = {}
            for sale_id, sku, held, granted, seq, sold in rows:
                units.setdefault(sale_id, {})[sku] = UnitsLook(int(held), granted, seq, sold)
            shards.append(units)
        return shards

    async def strays(self) -> dict[int, tuple[int, int]]:
        """Per lane: versions without their order, and orders without their version, over all shards."""
        strays: dict[int, tuple[int, int]] = {}
        for rows in await self._of_all_shards("count_strays", {}):
            for lane, versions, orders in rows:
                before = strays.get(lane, (0, 0))
                strays[lane] = (before[0] + versions, before[1] + orders)
        return strays

    async def dead_lettered(self, lanes: Collection[int]) -> int:
        """Number of entries of these lanes in the dead letters."""
        counts = await self._of_all_shards("count_dead_lettered", {"lanes": list(lanes)})
        return sum(int(rows[0][0]) for rows in counts)

    async def places(self, lane: int, *, after: int, upto: int) -> int:
        """Number of places of a lane in (after, upto] stored, dead-lettered or recorded as lost, over all shards."""
        values = {"lane": lane, "after": after, "upto": upto}
        counts = await self._of_all_shards("count_range", values)
        lost = await _rows(self._catalogue, "count_lost", values)
        return sum(int(rows[0][0]) for rows in (*counts, lost))

    async def lost(self) -> list[LostRange]:
        """Ranges that rebuilds recorded as lost."""
        return [LostRange(*row) for row in await _rows(self._catalogue, "read_lost", {})]

    async def unknown_tails(self) -> list[UnknownTail]:
        """Losses of unknown extent."""
        return [UnknownTail(*row) for row in await _rows(self._catalogue, "read_unknown_tails", {})]

    async def watermarks(self) -> dict[int, int]:
        """By lane, the sequence up to which it was proved before."""
        return dict(await _rows(self._catalogue, "read_watermarks", {}))

    async def raise_watermark(self, lane: int, verified_seq: int) -> None:
        """Record how far a lane was proved."""
        async with self._catalogue.connection() as connection:
            await connection.execute(_SQL["raise_watermark"], {"lane": lane, "verified_seq": verified_seq})

    async def note_poison(self, lane: int) -> None:
        """Note the relay's own dead letters of a lane in the first shard, since they belong to no shard."""
        cursor: str | None = None
        seqs: list[int] = []
        for _ in range(POISON_PAGES_MAX):
            letters, cursor = await self._letters.list(topology.POISON_ENTRIES, cursor=cursor, limit=PAGE_LETTERS_MAX)
            seqs += [int(x.headers["lane_seq"]) for x in letters if x.headers.get("lane") == str(lane)]
            if cursor is None:
                break
        if seqs:
            values = {"lane": lane, "lane_seqs": seqs, "reason": "belongs to no shard"}
            async with self._shards[0].connection() as connection:
                await connection.execute(_SQL["note_dead_lettered"], values)

    async def _of_all_shards(self, block: str, values: Mapping[str, Any]) -> list[list[TupleRow]]:
        return await asyncio.gather(*(_rows(pool, block, values) for pool in self._shards))


async def _rows(pool: Pool, block: str, values: Mapping[str, Any]) -> list[TupleRow]:
    async with pool.connection() as connection, connection.transaction():
        await connection.execute(f"SET LOCAL statement_timeout = '{STATEMENT_S_MAX}s'")
        return await (await connection.execute(_SQL[block], values)).fetchall()
