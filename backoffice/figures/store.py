"""Reads the figures of running sales at one moment: stock, counts, verdicts, and every backlog on the way of an order.

All servers are asked at the same time and within a bound. A server that does not answer is named, its part left out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from uuid import UUID

import psycopg
import redis.exceptions
from psycopg_pool import PoolTimeout, TooManyRequests

from backoffice.stores import Stores
from domain import topology
from domain.ids import parse_uuid
from domain.orders import MalformedEntry, decode_head
from domain.sales import SaleDefinition, SaleState, Stock, state_at
from reservation.documents import MalformedDocument, SaleDocuments, decode_document
from reservation.reading import unpack_stock
from reservation.verdicts import decode_money_verdict, decode_verdict
from runtime.dead_letters import DeadLetters, DeadLettersUnavailable
from runtime.postgres.databases import Database
from runtime.postgres.sql import load_sql
from runtime.queue import Queue, QueueDepth, QueueUnavailable

SALES_SHOWN_MAX = 20
SALES_READ_MAX = 1000  # the bound of an edge
PART_S_MAX = 2.0
OUTBOX_ROWS_MAX = 10_000
COMING_MS = 24 * 3600 * 1000  # shown from so long before the start
OVER_MS = 10 * 60 * 1000  # until so long after the end

SQL = load_sql(__package__, "figures.sql")
T = TypeVar("T")
_FAILURES = (
    redis.exceptions.RedisError,
    psycopg.Error,
    PoolTimeout,
    TooManyRequests,
    QueueUnavailable,
    DeadLettersUnavailable,
    TimeoutError,
    OSError,
)


@dataclass(frozen=True, slots=True)
class SaleFigures:
    """A sale at one moment. `stock` by SKU index, None if a lane has lost the sale; `refused` by code.

    A verdict is None until there is one, and when it is older than 15 s. `deep_look_age_s`: time since the reconciler
    read every stored order, None if the verdicts do not include that.
    """

    definition: SaleDefinition
    state: SaleState
    stock: tuple[Stock, ...] | None
    accepted: int
    refused: Mapping[str, int]
    verdict_a: bool | None
    verdict_b: bool | None
    deep_look_age_s: float | None


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """A shard's queue: its depth and its dead letters."""

    depth: QueueDepth
    dead: int


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures at one moment of the Redis clock. Parts of the servers named in `unavailable` are None.

    `left_out`: number of running sales that are not shown. `verdict_g`: the verdict on the money of all sales; None as
    for a sale. `unrelayed`: entries and age of the oldest in seconds, by
    lane. `queues`: by shard. `outboxes`: rows and age of the oldest in seconds, by shard. `dead`: number of dead
    letters.
    """

    at_ms: int | None
    sales: tuple[SaleFigures, ...]
    left_out: int
    verdict_g: bool | None
    unrelayed: tuple[tuple[int, float], ...] | None
    queues: tuple[QueueFigures, ...] | None
    outboxes: tuple[tuple[int, float] | None, ...]
    dead: int | None
    unavailable: tuple[str, ...]


class Lookout:
    """Reads the figures."""

    def __init__(self, stores: Stores, queue: Queue, letters: DeadLetters) -> None:
        """Uses them, owns nothing."""
        self._stores = stores
        self._queue = queue
        self._letters = letters
        self._documents = SaleDocuments(stores.redis)
        self._known: dict[UUID, tuple[bytes, SaleDefinition]] = {}  # parsed documents; they seldom change

    async def look(self) -> Figures:
        """The current figures; does not raise for a server that is down."""
        names = ["redis", "queue", *(f"shard_{shard}" for shard in range(len(self._stores.shards)))]
        asked: list[Awaitable[Any]] = [
            self._redis_part(),
            self._queue_part(),
            *(_outbox(shard) for shard in self._stores.shards),
        ]
        answers = await asyncio.gather(*(_bounded(answer) for answer in asked))
        redis_part, queue_part, *outboxes = answers
        at_ms, sales, left_out, verdict_g, unrelayed = redis_part or (None, (), 0, None, None)
        queues, dead = queue_part or (None, None)
        return Figures(
            at_ms=at_ms,
            sales=sales,
            left_out=left_out,
            verdict_g=verdict_g,
            unrelayed=unrelayed,
            queues=queues,
            outboxes=tuple(outboxes),
            dead=dead,
            unavailable=tuple(name for name, answer in zip(names, answers, strict=True) if answer is None),
        )

    async def _redis_part(
        self,
    ) -> tuple[int, tuple[SaleFigures, ...], int, bool | None, tuple[tuple[int, float], ...]]:
        client = self._stores.redis
        now_ms = await self._stores.now_ms()
        running = self._running(await self._definitions(), now_ms)
        shown = running[:SALES_SHOWN_MAX]
        lanes = range(self._stores.topology.lanes)
        async with client.pipeline(transaction=False) as pipeline:
            for lane in lanes:
                pipeline.xlen(topology.lane_stream_key(lane))
                pipeline.xrange(topology.lane_stream_key(lane), count=1)
            for sale, _ in shown:
                sale_id = str(sale.sale_id)
                pipeline.hget(topology.ACCEPTED_KEY, sale_id)
                pipeline.hgetall(topology.REFUSED_KEY_PREFIX + sale_id)
                pipeline.hget(topology.VERDICTS_KEY, sale_id)
                fields = [topology.stock_field(sale.sale_id, index) for index in range(len(sale.items))]
                for lane in sale.lanes:
                    pipeline.hmget(topology.lane_state_key(lane), fields)
            pipeline.get(topology.MONEY_VERDICT_KEY)
            *others, money_verdict = await pipeline.execute()
        answers = iter(others)
        unrelayed = tuple((int(next(answers)), _age_s(next(answers), now_ms)) for _ in lanes)
        figures: list[SaleFigures] = []
        for sale, state in shown:
            accepted, refused, verdict = next(answers), next(answers), next(answers)
            stock = _stock([next(answers) for _ in sale.lanes])
            judged = decode_verdict(verdict, now_ms)
            figures.append(
                SaleFigures(
                    definition=sale,
                    state=state,
                    stock=stock,
                    accepted=int(accepted or 0),
                    refused={code.decode("ascii"): int(count) for code, count in sorted(refused.items())},
                    verdict_a=judged.a,
                    verdict_b=judged.b,
                    deep_look_age_s=judged.deep_age_s(now_ms),
                )
            )
        verdict_g = decode_money_verdict(money_verdict, now_ms)
        return now_ms, tuple(figures), len(running) - len(shown), verdict_g, unrelayed

    async def _definitions(self) -> list[SaleDefinition]:
        members = cast(set[bytes], await self._stores.redis.smembers(topology.SALES_KEY))
        # Janitor and edges log malformed ids and documents; here they only must not hide the other sales.
        listed = (parse_uuid(member.decode("ascii", "replace")) for member in members)
        sale_ids = sorted((sale_id for sale_id in listed if sale_id is not None), reverse=True)[:SALES_READ_MAX]
        known: dict[UUID, tuple[bytes, SaleDefinition]] = {}
        for sale_id, raw in zip(sale_ids, await self._documents.read_raw(sale_ids) if sale_ids else [], strict=True):
            if raw is None:
                continue
            before = self._known.get(sale_id)
            if before is not None and before[0] == raw:
                known[sale_id] = before
                continue
            with contextlib.suppress(MalformedDocument):
                known[sale_id] = raw, decode_document(raw)
        self._known = known
        return [definition for _, definition in known.values()]

    @staticmethod
    def _running(sales: list[SaleDefinition], now_ms: int) -> list[tuple[SaleDefinition, SaleState]]:
        """The sales to show, most urgent first: open, paused, scheduled, ended."""
        rank = {SaleState.OPEN: 0, SaleState.PAUSED: 1, SaleState.SCHEDULED: 2, SaleState.ENDED: 3}
        running = []
        for sale in sales:
            if sale.starts_at_ms > now_ms + COMING_MS or sale.ends_at_ms < now_ms - OVER_MS:
                continue
            state = state_at(sale.state, starts_at_ms=sale.starts_at_ms, ends_at_ms=sale.ends_at_ms, now_ms=now_ms)
            running.append((sale, state))
        running.sort(key=lambda one: (rank[one[1]], abs(one[0].starts_at_ms - now_ms), one[0].sale_id))
        return running

    async def _queue_part(self) -> tuple[tuple[QueueFigures, ...], int]:
        names = [topology.order_queue(shard) for shard in range(self._stores.topology.shards)]
        letters, depths = await asyncio.gather(
            self._letters.count(), asyncio.gather(*(self._queue.depth(name) for name in names))
        )
        queues = [QueueFigures(depth, letters.get(name, 0)) for name, depth in zip(names, depths, strict=True)]
        return tuple(queues), sum(letters.values())


async def _outbox(shard: Database) -> tuple[int, float]:
    async with shard.connection() as connection:
        cursor = await connection.execute(SQL["outbox"], {"rows_max": OUTBOX_ROWS_MAX})
        [(rows, age_s)] = await cursor.fetchall()
    return rows, max(0.0, age_s)


async def _bounded(answer: Awaitable[T]) -> T | None:
    try:
        async with asyncio.timeout(PART_S_MAX):
            return await answer
    except _FAILURES:
        return None


def _age_s(oldest: list[tuple[bytes, Mapping[bytes, bytes]]], now_ms: int) -> float:
    """The age of a stream's first entry, by the time of its change; 0 for an empty stream and for a malformed entry,
    which the relay puts aside."""
    try:
        return max(0.0, (now_ms - decode_head(oldest[0][1][b"e"]).changed_at_ms) / 1000)
    except (IndexError, KeyError, MalformedEntry):
        return 0.0


def _stock(lanes: list[list[bytes | None]]) -> tuple[Stock, ...] | None:
    """Sums over the lanes by SKU index; None if a lane lacks a SKU."""
    sums: list[Stock] = []
    for values in zip(*lanes, strict=True):
        stocks = [stock for value in values if (stock := unpack_stock(value)) is not None]
        if len(stocks) < len(values):
            return None
        sums.append(Stock.total(stocks))
    return tuple(sums)
