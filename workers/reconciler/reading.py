"""Reads what verdicts are made from: Redis lanes, the catalogue's ledger, the shards. Judges nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast
from uuid import UUID

import orjson
import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from domain import topology
from domain.sales import LaneSaleState, SaleDefinition, Stock
from runtime.dead_letters import PAGE_LETTERS_MAX, DeadLetters
from runtime.postgres.sql import load_sql
from workers.reconciler.stock import LaneLook, LedgerLook, LostRange, UnitsLook, UnknownTail

STATEMENT_S_MAX = 60
POISON_PAGES_MAX = 50

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]
_SQL = load_sql("workers.reconciler", "reconciler.sql")
log = structlog.get_logger()


class Reading:
    """Read access to all that the reconciler compares; `shards` in shard order."""

    def __init__(self, *, redis: Redis, catalogue: Pool, shards: Sequence[Pool], letters: DeadLetters) -> None:
        """Uses the clients, does not own them."""
        self._redis = redis
        self._catalogue = catalogue
        self._shards = shards
        self._letters = letters

    async def now_ms(self) -> int:
        """Redis time."""
        seconds, microseconds = await self._redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def sales(self, *, only: UUID | None) -> list[SaleDefinition]:
        """Published sales by their documents, sorted by id."""
        members = cast(set[bytes], await self._redis.smembers(topology.SALES_KEY))
        sale_ids = [UUID(member.decode("ascii")) for member in sorted(members)]
        wanted = [sale_id for sale_id in sale_ids if only is None or sale_id == only]
        if not wanted:
            return []
        documents = cast(list[bytes | None], await self._redis.mget([topology.sale_key(sale_id) for sale_id in wanted]))
        sales = []
        for sale_id, document in zip(wanted, documents, strict=True):
            try:
                if document is not None:
                    sales.append(SaleDefinition.from_document(orjson.loads(document)))
            except (ValueError, KeyError, TypeError) as error:
                log.error("sale document is malformed", sale_id=str(sale_id), error=repr(error))
        return sales

    async def lanes(self, sales: Iterable[SaleDefinition]) -> dict[int, LaneLook]:
        """Every lane of the sales, each read by one command: its sequence and its counters are of one moment."""
        by_lane: dict[int, list[SaleDefinition]] = {}
        for sale in sales:
            for lane in sale.lanes:
                by_lane.setdefault(lane, []).append(sale)
        return {lane: await self._lane(lane, listed) for lane, listed in sorted(by_lane.items())}

    async def _lane(self, lane: int, sales: Sequence[SaleDefinition]) -> LaneLook:
        fields = ["seq"]
        for sale in sales:
            fields.append(topology.definition_field(sale.sale_id))
            fields += [topology.stock_field(sale.sale_id, index) for index in range(len(sale.items))]
        values = cast(list[bytes | None], await self._redis.hmget(topology.lane_state_key(lane), fields))
        stocks: dict[UUID, list[Stock] | None] = {}
        closed: dict[UUID, str] = {}
        at = 1
        for sale in sales:
            reason = _why_closed(sale, lane, values[at])
            if reason is not None:
                closed[sale.sale_id] = reason
            part = values[at + 1 : at + 1 + len(sale.items)]
            at += 1 + len(sale.items)
            known = [Stock.unpack(value) for value in part if value is not None]
            stocks[sale.sale_id] = known if len(known) == len(part) else None
        return LaneLook(int(values[0] or 0), stocks, closed)

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
        """Per shard, by sale and SKU. Reads every order: for deep looks only."""
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
        """How many entries of these lanes are in the dead letters."""
        counts = await self._of_all_shards("count_dead_lettered", {"lanes": list(lanes)})
        return sum(int(rows[0][0]) for rows in counts)

    async def places(self, lane: int, *, after: int, upto: int) -> int:
        """How many places of a lane in (after, upto] are stored, dead-lettered or noted as lost, over all shards."""
        values = {"lane": lane, "after": after, "upto": upto}
        counts = await self._of_all_shards("count_range", values)
        lost = await _rows(self._catalogue, "count_lost", values)
        return sum(int(rows[0][0]) for rows in (*counts, lost))

    async def lost(self) -> list[LostRange]:
        """What rebuilds noted as lost."""
        return [LostRange(*row) for row in await _rows(self._catalogue, "read_lost", {})]

    async def unknown_tails(self) -> list[UnknownTail]:
        """Losses whose extent nobody knows."""
        return [UnknownTail(*row) for row in await _rows(self._catalogue, "read_unknown_tails", {})]

    async def watermarks(self) -> dict[int, int]:
        """How far each lane was proved before."""
        return dict(await _rows(self._catalogue, "read_watermarks", {}))

    async def raise_watermark(self, lane: int, verified_seq: int) -> None:
        """Remember how far a lane was proved."""
        async with self._catalogue.connection() as connection:
            await connection.execute(_SQL["raise_watermark"], {"lane": lane, "verified_seq": verified_seq})

    async def note_poison(self, lane: int) -> None:
        """Note the relay's own dead letters of a lane in the first shard: they belong to none."""
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


def _why_closed(sale: SaleDefinition, lane: int, packed: bytes | None) -> str | None:
    """Why a lane cannot sell, None if it can."""
    if packed is None:
        return f"lane {lane} does not know the sale"
    state, epoch = packed[0], int.from_bytes(packed[1:5], "big")
    if epoch < sale.epoch:
        return f"lane {lane} has epoch {epoch} of {sale.epoch}"
    return f"lane {lane} has closed the sale" if state == LaneSaleState.CLOSED else None


async def _rows(pool: Pool, block: str, values: Mapping[str, Any]) -> list[TupleRow]:
    async with pool.connection() as connection, connection.transaction():
        await connection.execute(f"SET LOCAL statement_timeout = '{STATEMENT_S_MAX}s'")
        return await (await connection.execute(_SQL[block], values)).fetchall()
