"""Reads the stored data of one sale: Redis lanes and orders, shards, event log, queues, money. Judges nothing."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast
from uuid import UUID

import orjson
import psycopg
from pydantic import SecretStr
from redis.asyncio import Redis

from domain import topology
from domain.events import read_event
from domain.orders import OrderEntry, decode_value, unpack_key
from domain.sales import SaleDefinition, Stock
from faults.figures_read import read_figures
from faults.money import (
    Money,
    money_event,
    moving,
    read_marks,
    read_provider,
    read_rows,
)
from ops.stack_file import Stack
from runtime.dead_letters import PAGE_LETTERS_MAX, open_dead_letters
from runtime.event_log import EventLog, LogRecord, open_event_log
from runtime.queue import open_queue
from runtime.redis.client import redis_client

SCAN_COUNT = 5000
READ_AT_ONCE = 1000
_ARRIVAL_BYTES = 7  # of a user's state, before its purchase counters: docs/redis-layout.md

_ORDERS = """
    SELECT
        id, user_id, idempotency_key, status, version, lines, lane, total_minor, currency,
        round(extract(epoch FROM reserved_at) * 1000)::bigint, round(extract(epoch FROM expires_at) * 1000)::bigint
    FROM orders WHERE sale_id = %s
"""
_TRANSITIONS = """
    SELECT t.order_id, t.version, t.lane, t.lane_seq, t.status
    FROM order_transitions t JOIN orders o ON o.id = t.order_id WHERE o.sale_id = %s
"""
_QUOTA = "SELECT sku, granted, sold FROM quota WHERE sale_id = %s"
_LEDGER = "SELECT sku, stock, granted FROM stock_ledger WHERE sale_id = %s"
_GRANTS = "SELECT sku, shard, total FROM shard_grant WHERE sale_id = %s"
# Of all sales: a lane's places are shared.
_PLACES = """
    SELECT lane_seq FROM order_transitions WHERE lane = %(lane)s
    UNION SELECT lane_seq FROM repeated_places WHERE lane = %(lane)s
    UNION SELECT lane_seq FROM dead_lettered WHERE lane = %(lane)s
"""
_REPEATED = "SELECT order_id, version, lane, lane_seq, status FROM repeated_places WHERE sale_id = %s"
_GIVEN_UP = "SELECT lane, lane_seq FROM given_up_entries"
_OUTBOX = "SELECT count(*) FROM outbox"
_OUTBOX_ROWS = """
    SELECT format('%s, %s ms old: %s', destination,
        round(1000 * extract(epoch FROM clock_timestamp() - created_at)), left(events #>> '{0,type}', 40))
    FROM outbox ORDER BY id LIMIT 100
"""


@dataclass(frozen=True, slots=True)
class StoredOrder:
    """A row of `orders`. `lines`: pairs of SKU and quantity; `prices_minor` in the same order."""

    shard: int
    order_id: UUID
    user_id: UUID
    key: str
    status: int
    version: int
    lines: tuple[tuple[str, int], ...]
    lane: int
    prices_minor: tuple[int, ...]
    total_minor: int
    currency: str
    reserved_at_ms: int
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class Event:
    """A record of the event log about an order of the sale; `digest` is the hash of its attributes and data."""

    event_id: str
    order_id: UUID
    version: int
    digest: str
    status: str
    user_id: UUID
    lines: tuple[tuple[str, int], ...]
    total_minor: int
    key: str
    partition: int


@dataclass(slots=True)
class Evidence:
    """All data of one sale. `lanes` maps a lane to its counters by SKU index; None for a lane without the sale."""

    definition: SaleDefinition
    rows: list[StoredOrder] = field(default_factory=list)
    transitions: list[tuple[UUID, int, int, int, int]] = field(default_factory=list)  # order, version, place, status
    repeated: list[tuple[UUID, int, int, int, int]] = field(default_factory=list)  # as transitions, from another place
    quota: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)  # (shard, SKU) -> granted, sold
    ledger: dict[str, tuple[int, int]] = field(default_factory=dict)  # SKU -> stock, granted
    grants: dict[tuple[int, str], int] = field(default_factory=dict)  # (shard, SKU) -> total
    lanes: dict[int, list[Stock] | None] = field(default_factory=dict)
    orders: dict[UUID, OrderEntry] = field(default_factory=dict)  # in Redis, by id
    records: dict[tuple[UUID, str], UUID] = field(default_factory=dict)  # apply-once: (user, key) -> order
    purchases: dict[tuple[UUID, str], int] = field(
        default_factory=dict
    )  # (user, SKU) -> units counted against the limit
    places: dict[int, tuple[int, set[int]]] = field(
        default_factory=dict
    )  # lane -> newest, those stored or dead-lettered
    events: list[Event] = field(default_factory=list)
    outbox: list[str] = field(default_factory=list)  # rows that are not dispatched, at most 100 of a shard
    dead_letters: int = 0
    money: Money = field(default_factory=Money)
    figures: dict[str, int] | None = None  # sums of analytics by name, without zeros; None: not looked at


async def gather(
    stack: Stack, sale_id: UUID, *, cluster: topology.Topology, since: datetime, known_dead_letters: int = 0
) -> Evidence:
    """Read all data. Call when no request is in flight: this is not a snapshot.

    `since`: all money that the provider moved from then on must be of this sale.
    """
    redis = redis_client(stack.redis_url)
    log = open_event_log(stack.event_log_url, topology.TOPICS)
    try:
        evidence = Evidence(await read_definition(redis, sale_id))
        await _read_redis(redis, evidence, sale_id)
        evidence.dead_letters = await dead_letters(stack) - known_dead_letters
        for shard, dsn in enumerate(stack.shard_dsns):
            await _read_shard(dsn, shard, evidence, sale_id)
            await _read_places(dsn, evidence)
            await read_rows(dsn, shard, evidence.money, sale_id, since)
        await read_marks(redis, evidence.money)
        await read_provider(stack, evidence.money, since)
        await _read_poison(stack, evidence)
        await _read_catalogue(stack.catalogue_dsn, evidence, sale_id)
        await _read_events(log, evidence, sale_id)
        evidence.figures = await read_figures(stack, log, sale_id)
    finally:
        await log.close()
        await redis.aclose()
    assert cluster.shards == len(stack.shard_dsns)
    return evidence


async def backlog(stack: Stack, *, cluster: topology.Topology, since: datetime) -> dict[str, int]:
    """Number of entries in lanes, of messages in queues, of waiting retries, of outbox rows, and of money on its way.

    All 0: quiet. `since`: the provider's ledger is read from then on.
    """
    counts: dict[str, int] = {}
    redis = redis_client(stack.redis_url)
    queue = open_queue(stack.queue_url, cluster.queues)
    try:
        for lane in range(cluster.lanes):
            counts[f"lane {lane}"] = int(await redis.xlen(topology.lane_stream_key(lane)))
        for shard in range(cluster.shards):
            # The barrier covers messages in the hands of writers, which a queue's depth may leave out.
            passed = await queue.barrier(topology.order_queue(shard), wait_s=0)
            depth = await queue.depth(topology.order_queue(shard))
            counts[f"queue {shard}"] = max(depth.messages, 0 if passed else 1)
            counts[f"retries {shard}"] = depth.retrying
        refunds = await queue.depth(topology.REFUNDS_QUEUE)
        counts["refunds"] = refunds.messages + refunds.retrying
        counts |= await moving(stack, since)
    finally:
        await queue.close()
        await redis.aclose()
    for shard, dsn in enumerate(stack.shard_dsns):
        async with await psycopg.AsyncConnection.connect(dsn, connect_timeout=5) as connection:
            row = await (await connection.execute(_OUTBOX)).fetchone()
            counts[f"outbox {shard}"] = int(row[0]) if row else 0
    return counts


async def dead_letters(stack: Stack) -> int:
    """Number of dead letters in all queues."""
    letters = open_dead_letters(SecretStr(stack.catalogue_dsn))
    try:
        return sum((await letters.count()).values())
    finally:
        await letters.close()


async def read_definition(redis: Redis, sale_id: UUID) -> SaleDefinition:
    """The sale's definition in Redis."""
    return SaleDefinition.from_document(orjson.loads(cast(bytes, await redis.get(topology.sale_key(sale_id)))))


async def read_counters(redis: Redis, sale_id: UUID) -> dict[int, list[Stock] | None]:
    """Counters by SKU index for each lane of a sale; None for a lane without the sale."""
    definition = await read_definition(redis, sale_id)
    fields = [topology.stock_field(sale_id, index) for index in range(len(definition.items))]
    lanes: dict[int, list[Stock] | None] = {}
    for lane in definition.lanes:
        values = cast(list[bytes | None], await redis.hmget(topology.lane_state_key(lane), fields))
        known = [Stock.unpack(value) for value in values if value is not None]
        lanes[lane] = known if len(known) == len(fields) else None
    return lanes


async def _read_redis(redis: Redis, evidence: Evidence, sale_id: UUID) -> None:
    evidence.lanes = await read_counters(redis, sale_id)
    for lane in evidence.definition.lanes:
        evidence.places[lane] = int(await cast(Any, redis.hget(topology.lane_state_key(lane), "seq")) or 0), set()
        async for key in redis.scan_iter(topology.user_key_pattern(lane, sale_id), count=SCAN_COUNT):
            user_id = topology.id_of_key(key)
            fields_of_user = cast(dict[bytes, bytes], await redis.hgetall(key))
            for name, record in fields_of_user.items():
                if name != topology.USER_STATE_FIELD:
                    evidence.records[user_id, unpack_key(name)] = UUID(bytes=record[:16])
                    continue
                for at in range(_ARRIVAL_BYTES, len(record), 3):
                    sku = evidence.definition.items[record[at]].sku
                    evidence.purchases[user_id, sku] = int.from_bytes(record[at + 1 : at + 3], "big")
    wanted = sorted(set(evidence.records.values()))
    for start in range(0, len(wanted), READ_AT_ONCE):
        part = wanted[start : start + READ_AT_ONCE]
        values = cast(list[bytes | None], await redis.mget([topology.order_key(order_id) for order_id in part]))
        evidence.orders.update(
            (order_id, decode_value(order_id, value))
            for order_id, value in zip(part, values, strict=True)
            if value is not None
        )


async def _read_shard(dsn: str, shard: int, evidence: Evidence, sale_id: UUID) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, connect_timeout=5) as connection:
        for row in await _rows(connection, _ORDERS, sale_id):
            order_id, user_id, key, status, version, lines, lane, *money_and_times = row
            pairs = tuple((line["sku"], int(line["quantity"])) for line in lines)
            prices = tuple(int(line["unit_price_minor"]) for line in lines)
            evidence.rows.append(
                StoredOrder(shard, order_id, user_id, key, status, version, pairs, lane, prices, *money_and_times)
            )
        evidence.transitions += [cast(Any, tuple(row)) for row in await _rows(connection, _TRANSITIONS, sale_id)]
        evidence.repeated += [cast(Any, tuple(row)) for row in await _rows(connection, _REPEATED, sale_id)]
        for sku, granted, sold in await _rows(connection, _QUOTA, sale_id):
            evidence.quota[shard, sku] = (granted, sold)
        rows = await (await connection.execute(_OUTBOX_ROWS)).fetchall()
        evidence.outbox += [f"shard {shard}, {text}" for (text,) in rows]


async def _read_places(dsn: str, evidence: Evidence) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, connect_timeout=5) as connection:
        for lane, (_, places) in evidence.places.items():
            places.update([seq async for (seq,) in await connection.execute(_PLACES, {"lane": lane})])


async def _read_poison(stack: Stack, evidence: Evidence) -> None:
    """Add places that the relay dead-lettered, also in earlier drills: the reconciler reports them to shards later."""
    letters, cursor = open_dead_letters(SecretStr(stack.catalogue_dsn)), None
    try:
        while True:
            page, cursor = await letters.list(topology.POISON_ENTRIES, cursor=cursor, limit=PAGE_LETTERS_MAX)
            for letter in page:
                if (place := evidence.places.get(int(letter.headers["lane"]))) is not None:
                    place[1].add(int(letter.headers["lane_seq"]))
            if cursor is None:
                return
    finally:
        await letters.close()


async def _read_catalogue(dsn: str, evidence: Evidence, sale_id: UUID) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, connect_timeout=5) as connection:
        evidence.ledger = {sku: (stock, granted) for sku, stock, granted in await _rows(connection, _LEDGER, sale_id)}
        evidence.grants = {(shard, sku): total for sku, shard, total in await _rows(connection, _GRANTS, sale_id)}
        async for lane, lane_seq in await connection.execute(_GIVEN_UP):
            if (place := evidence.places.get(lane)) is not None:
                place[1].add(lane_seq)


async def _rows(connection: psycopg.AsyncConnection[Any], query: str, sale_id: UUID) -> Sequence[Any]:
    return await (await connection.execute(query.encode(), (sale_id,))).fetchall()


async def _read_events(log: EventLog, evidence: Evidence, sale_id: UUID) -> None:
    """The records about the sale. A record counts as another one if its attributes or its data differ."""
    wanted = str(sale_id).encode()
    async for record in _records(log, topology.TOPIC_ORDERS):
        if wanted in record.value:
            event = read_event(record.headers, record.value)
            data = event.data
            evidence.events.append(
                Event(
                    event.id, UUID(data["order_id"]), event.version, digest_of(record), event.type.removeprefix("order."),
                    UUID(data["user_id"]), tuple((line["sku"], line["quantity"]) for line in data["items"]),
                    data["total_minor"], record.key, record.partition,
                )
            )  # fmt: skip
    async for record in _records(log, topology.TOPIC_PAYMENTS):
        if wanted in record.value:
            evidence.money.events.append(money_event(read_event(record.headers, record.value), digest_of(record)))


def digest_of(record: LogRecord) -> str:
    """Hash of the attributes and the data of a record's event."""
    attributes = {name: value for name, value in record.headers.items() if name.startswith("ce_")}
    return hashlib.sha256(orjson.dumps(attributes, option=orjson.OPT_SORT_KEYS) + record.value).hexdigest()


async def _records(log: EventLog, topic: str) -> AsyncIterator[LogRecord]:
    async with log.reader(None, topic, range(topology.OUTBOX_PARTITIONS)) as reader:
        while records := await reader.next_batch(count_max=READ_AT_ONCE, wait_s=0):
            for record in records:
                if record.problem is None:
                    yield record
