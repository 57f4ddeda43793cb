"""Reads everything that the reconciler's quick looks compare: lanes in Redis, the catalogue, the places in the shards.

A database that does not answer makes its own part unknown: its reads raise `Away`, and until the next look all further
reads of it raise at once, so that one database delays a look by its own bound only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from uuid import UUID

from psycopg.rows import TupleRow
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from domain import topology
from domain.sales import SaleDefinition
from reservation.documents import SaleDocuments
from reservation.reading import read_lane
from reservation.transfers import read_records
from runtime.dead_letters import PAGE_LETTERS_MAX, DeadLetters, identity_of
from runtime.postgres.databases import Pool
from runtime.postgres.sql import load_sql
from runtime.redis.clock import now_ms
from workers.consuming import TRANSIENT
from workers.places import Coverage, cover, unpack
from workers.reconciler.stock import GivenUp, LaneLook, LedgerLook, LostRange, UnknownTail

STATEMENT_S_MAX = 5
CALL_S_MAX = 6.0  # the client's bound, above the server's
POISON_PAGES_MAX = 50
MOVING_S_MAX = 10.0  # a look waits so long for a group of buckets
MOVING_LOOK_S = 0.02
MOVING_TRIES_MAX = 5
CATALOGUE = "catalogue"

SQL = load_sql("workers.reconciler", "reconciler.sql")
T = TypeVar("T")


class Away(Exception):
    """A database does not answer; its part of the comparison is unknown."""

    def __init__(self, part: str, reason: str) -> None:
        """`part` is `catalogue` or `shard N`."""
        super().__init__(f"{part} does not answer: {reason}")
        self.part = part
        self.reason = reason


class Source:
    """One database. Its pool bounds each call, so that one without an answer ends as a transient error."""

    def __init__(self, part: str, pool: Pool) -> None:
        """Uses the pool, does not own it."""
        self.part = part
        self.pool = pool
        self._problem: str | None = None

    def begin_look(self) -> None:
        """Ask again, also after a failure."""
        self._problem = None

    async def ask(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`. Raises Away for a transient error, now and until the next look begins."""
        if self._problem is not None:
            work.close()
            raise Away(self.part, self._problem)
        try:
            return await work
        except TRANSIENT as error:
            self._problem = f"{type(error).__name__}: {str(error).strip()[:200]}"
            raise Away(self.part, self._problem) from error

    async def rows(self, block: str, values: Mapping[str, Any], *, binary: bool = False) -> list[TupleRow]:
        """The rows of a statement of `reconciler.sql`, in a transaction of its own."""
        return await self.ask(_rows(self.pool, block, values, binary=binary))


@dataclass(frozen=True, slots=True)
class CatalogueLook:
    """The catalogue's part of a look."""

    ledger: Mapping[UUID, Mapping[str, LedgerLook]]
    lost: Sequence[LostRange]
    tails: Sequence[UnknownTail]
    given_up: Mapping[UUID, GivenUp]


class Reading:
    """Read access to everything that a quick look compares; `shards` in shard order."""

    def __init__(self, *, redis: Redis, catalogue: Pool, shards: Sequence[Pool], letters: DeadLetters) -> None:
        """Uses the clients, does not own them."""
        self._redis = redis
        self._documents = SaleDocuments(redis)
        self.catalogue = Source(CATALOGUE, catalogue)
        self.shards = [Source(f"shard {number}", pool) for number, pool in enumerate(shards)]
        self._letters = letters

    def apart(self) -> Reading:
        """The same servers, with failures and answers of its own: for the deep looks."""
        pools = [source.pool for source in self.shards]
        return Reading(redis=self._redis, catalogue=self.catalogue.pool, shards=pools, letters=self._letters)

    def begin_look(self) -> None:
        """Ask every database again."""
        for source in (self.catalogue, *self.shards):
            source.begin_look()

    async def now_ms(self) -> int:
        """Redis time."""
        return await now_ms(self._redis)

    async def sales(self, *, only: UUID | None) -> list[SaleDefinition]:
        """Published sales by their documents, sorted by id."""
        listed = await self._documents.listed()
        wanted = sorted(sale_id for sale_id in listed if only is None or sale_id == only)
        return [sale for sale in await self._documents.read(wanted) if sale is not None]

    async def lanes(self, sales: Sequence[SaleDefinition]) -> dict[int, LaneLook]:
        """Every lane of the sales, each read by one command: its sequence and its counters are of one moment."""
        by_lane: dict[int, list[SaleDefinition]] = {}
        for sale in sales:
            for lane in sale.lanes:
                by_lane.setdefault(lane, []).append(sale)
        looks = {lane: await self._lane(lane, listed) for lane, listed in sorted(by_lane.items())}
        for sale in sales:
            if len(sale.lanes) > 1:
                await self._add_records(sale, looks)
        return looks

    async def _add_records(self, sale: SaleDefinition, looks: dict[int, LaneLook]) -> None:
        try:
            records = await read_records(self._redis, sale)
        except (ValueError, ResponseError) as error:
            if isinstance(error, ResponseError) and not str(error).startswith("WRONGTYPE"):
                raise
            first = looks[sale.lanes[0]]  # only a rebuild replaces the records
            problem = f"records of transfers cannot be read: {type(error).__name__}: {error}"
            looks[sale.lanes[0]] = replace(first, closed={**first.closed, sale.sale_id: problem})
            return
        for lane, known in records.items():
            looks[lane] = replace(looks[lane], records={**looks[lane].records, sale.sale_id: known})

    async def _lane(self, lane: int, sales: Sequence[SaleDefinition]) -> LaneLook:
        try:
            state = await read_lane(self._redis, lane, {sale.sale_id: len(sale.items) for sale in sales})
        except (ValueError, ResponseError) as error:
            # A damaged sequence, or a key of another type: the other lanes keep their verdicts.
            if isinstance(error, ResponseError) and not str(error).startswith("WRONGTYPE"):
                raise
            return LaneLook(0, {sale.sale_id: None for sale in sales}, problem=f"{type(error).__name__}: {error}")
        stocks = {sale_id: there.full_stock for sale_id, there in state.sales.items()}
        problems = {sale.sale_id: state.sales[sale.sale_id].problem(sale.epoch) for sale in sales}
        closed = {sale_id: problem for sale_id, problem in problems.items() if problem is not None}
        malformed = {sale_id: there.malformed for sale_id, there in state.sales.items() if there.malformed}
        return LaneLook(state.seq, stocks, closed, malformed)

    async def of_catalogue(self, sale_ids: Collection[UUID]) -> CatalogueLook:
        """Ledger, losses and deleted dead letters of these sales. Raises Away."""
        ledger = await self.ledger(sale_ids)
        lost = [LostRange(*row) for row in await self.catalogue.rows("read_lost", {})]
        tails = [UnknownTail(*row) for row in await self.catalogue.rows("read_unknown_tails", {})]
        rows = await self.catalogue.rows("read_given_up", {"sale_ids": list(sale_ids)})
        return CatalogueLook(ledger, lost, tails, {sale_id: GivenUp(*more) for sale_id, *more in rows})

    async def ledger(self, sale_ids: Collection[UUID]) -> dict[UUID, dict[str, LedgerLook]]:
        """Ledger rows by sale and SKU. Raises Away."""
        ledger: dict[UUID, dict[str, LedgerLook]] = {sale_id: {} for sale_id in sale_ids}
        rows = await self.catalogue.rows("read_ledger", {"sale_ids": list(sale_ids)})
        for sale_id, sku, stock, granted, shard, total, seq in rows:
            look = ledger[sale_id].setdefault(sku, LedgerLook(stock, granted))
            if shard >= 0:
                look.grants[shard] = (total, seq)
        return ledger

    async def switches(self) -> int:
        """Counts the times in which rows of buckets may be in two shards: odd during one. Raises Away."""
        rows = await self.catalogue.rows("read_switches", {})
        return int(rows[0][0]) if rows else 0

    async def settled_switches(self) -> int:
        """As `switches`, at a time at which no row is in two shards. Raises Away if buckets move for long."""
        end = time.monotonic() + MOVING_S_MAX
        while (switches := await self.switches()) % 2:
            if time.monotonic() > end:
                raise Away(CATALOGUE, "a group of buckets moves: run `flashsale shards status`")
            await asyncio.sleep(MOVING_LOOK_S)
        return switches

    async def places(self, lane: int, *, after: int, upto: int) -> Coverage:
        """The places of a lane in (after, upto], compared with all shards and the catalogue. Raises Away.

        Read again when rows moved between shards meanwhile: places would be missing or doubled.
        """
        for _ in range(MOVING_TRIES_MAX):
            switches = await self.settled_switches()
            coverage = await self._places(lane, after=after, upto=upto)
            if await self.switches() == switches:
                return coverage
        raise Away(CATALOGUE, "buckets moved at each of several looks")

    async def _places(self, lane: int, *, after: int, upto: int) -> Coverage:
        values = {"lane": lane, "after": after, "upto": upto}
        answers = await _all(shard.rows("read_places", values, binary=True) for shard in self.shards)
        stored, noted = [], []
        for ((transitions, repeated, dead),) in answers:
            stored += [unpack(transitions), unpack(repeated)]
            noted.append(unpack(dead))
        lost = [(first, last) for first, last in await self.catalogue.rows("read_lost_places", values)]
        return cover(after, upto, stored=stored, noted=noted, lost=lost)

    async def watermarks(self) -> dict[int, int]:
        """By lane, the sequence up to which it was proved before. Raises Away."""
        return dict(await self.catalogue.rows("read_watermarks", {}))

    async def raise_watermark(self, lane: int, verified_seq: int) -> None:
        """Record how far a lane was proved. Raises Away."""
        await self.catalogue.rows("raise_watermark", {"lane": lane, "verified_seq": verified_seq})

    async def note_poison(self, lane: int) -> None:
        """Note the relay's own dead letters of a lane in the first shard: they belong to no shard. Raises Away."""
        cursor: str | None = None
        seqs: list[int] = []
        identities: list[bytes] = []
        for _ in range(POISON_PAGES_MAX):
            letters, cursor = await self.catalogue.ask(
                self._letters.list(topology.POISON_ENTRIES, cursor=cursor, limit=PAGE_LETTERS_MAX)
            )
            for letter in letters:
                if letter.headers.get("lane") == str(lane):
                    seqs.append(int(letter.headers["lane_seq"]))
                    identities.append(identity_of(letter.queue, letter.message_id, letter.body))
            if cursor is None:
                break
        if seqs:
            values = {"lane": lane, "lane_seqs": seqs, "identities": identities, "reason": "belongs to no shard"}
            await self.shards[0].rows("note_dead_lettered", values)


async def _all(reads: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of concurrent reads; every read ends before the first error is raised."""
    results = await asyncio.gather(*reads, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value] # no element is an exception


async def _rows(pool: Pool, block: str, values: Mapping[str, Any], *, binary: bool) -> list[TupleRow]:
    async with pool.connection() as connection, connection.transaction():
        await connection.execute(f"SET LOCAL statement_timeout = '{STATEMENT_S_MAX}s'")
        cursor = await connection.execute(SQL[block], values, binary=binary)
        return await cursor.fetchall() if cursor.description else []
