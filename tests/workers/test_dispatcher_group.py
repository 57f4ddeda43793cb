"""Dispatching one outbox on real servers: order, isolation of partitions, poison, and the effects of a crash."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import cast

import orjson
import psycopg
import pytest
import redis
from pydantic import SecretStr

from devstack.servers import RedisServer
from domain.topology import (
    DESTINATION_NOTICES,
    DESTINATION_ORDER_EVENTS,
    EMAIL_QUEUE,
    OUTBOX_PARTITIONS,
    POISON_OUTBOX,
    TOPIC_ORDERS,
    TOPIC_PAYMENTS,
    TOPICS,
    outbox_partition,
)
from runtime.dead_letters import DeadLetter, DeadLetters, PostgresDeadLetters
from runtime.event_log import EventLog, EventLogUnavailable, LogRecord, NewRecord, open_event_log
from runtime.postgres.pool import postgres_pool
from runtime.process.service import Service
from runtime.process.settings import load_settings
from runtime.queue import Queue, open_queue
from runtime.redis.client import redis_client as new_client
from runtime.redis.leases import Lease
from tests.fixtures.fix_databases import Databases
from tests.workers.events import document_of
from tests.workers.making import TOPOLOGY
from tests.workers.writing import Pool, eventually
from workers.dispatcher.destinations import (
    DeliveryFailed,
    Destination,
    Event,
    EventTopic,
    MalformedEvents,
    QueueMessages,
)
from workers.dispatcher.group import PAGE_ROWS_MAX, DispatchGroup
from workers.dispatcher.outbox import Outbox, OutboxRow, Place

WAIT_S = 15.0
DATABASE = "shard-0"


def event(key: str, version: int) -> dict[str, object]:
    return {
        "id": f"{key}:{version}", "type": "order.reserved", "schema": 1, "key": key, "subject": f"order of {key}",
        "version": version, "time_ms": 1_800_000_000_123, "data": {"order_id": key},
    }  # fmt: skip


def put(dsn: str, partition: int, events: object, *, destination: str = DESTINATION_ORDER_EVENTS) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO outbox (destination, partition, events) VALUES (%s, %s, %s)",
            (destination, partition, orjson.dumps(events).decode()),
        )


def waiting_rows(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT count(*) FROM outbox").fetchone()
        assert row is not None
        return int(row[0])


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - looks at a server
            await asyncio.sleep(0.02)


class Failing:
    """The real destination, but some partitions are told to fail, as unavailable partitions do."""

    name = DESTINATION_ORDER_EVENTS

    def __init__(self, destination: Destination, failing: Sequence[int]) -> None:
        self._destination = destination
        self.failing = set(failing)
        self.failures = 0

    def events_of(self, text: str) -> list[Event]:
        return self._destination.events_of(text)

    async def deliver(self, partition: int, events: Sequence[Event]) -> None:
        if partition in self.failing:
            self.failures += 1
            raise DeliveryFailed("told to")
        await self._destination.deliver(partition, events)


class Setup:
    """Everything a group needs, on the test's servers."""

    def __init__(self, url: str, dsn: str, catalogue: Pool) -> None:
        self.dsn = dsn
        self.catalogue = catalogue
        self.letters: DeadLetters = PostgresDeadLetters(catalogue, letters_max=100)
        self.redis = new_client(url)
        self.queue: Queue = open_queue(url, TOPOLOGY.queues)
        self.log: EventLog = open_event_log(url, TOPICS)
        self.pool = postgres_pool(SecretStr(dsn), size_max=2)
        self.service = Service("dispatcher", load_settings({}))
        self.lease = Lease(self.redis, key="{t}:lease", fence_key="{t}:fence", life_ms=5_000)
        self.destination: Destination = EventTopic(DESTINATION_ORDER_EVENTS, self.log)
        self.others: list[Destination] = []

    @property
    def destinations(self) -> list[Destination]:
        return [self.destination, *self.others]

    def group(self) -> DispatchGroup:
        return DispatchGroup(
            database=DATABASE,
            outbox=Outbox(self.pool),
            destinations=self.destinations,
            letters=self.letters,
            lease=self.lease,
            service=self.service,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        assert await self.lease.acquire()
        task = asyncio.create_task(self.group().run())
        try:
            yield
            assert not task.done()
        finally:
            self.service.stopping.set()
            await asyncio.wait_for(task, WAIT_S)
            await self.lease.release()

    async def records(self, partition: int, topic: str = TOPIC_ORDERS) -> list[LogRecord]:
        async with self.log.reader(None, topic, (partition,)) as reader:
            return await reader.next_batch(count_max=10_000, wait_s=0)

    async def logged(self, partition: int, topic: str = TOPIC_ORDERS) -> list[dict[str, object]]:
        records = await self.records(partition, topic)
        return [document_of(record) for record in records]


@pytest.fixture
async def setup(redis_client: redis.Redis, redis_server: RedisServer, databases: Databases) -> AsyncIterator[Setup]:
    assert redis_client.dbsize() == 0
    made = Setup(
        redis_server.url, databases.shard_dsns[0], postgres_pool(SecretStr(databases.catalogue_dsn), size_max=2)
    )
    await made.pool.open()
    await made.catalogue.open()
    yield made
    await made.catalogue.close()
    await made.pool.close()
    await made.log.close()
    await made.queue.close()
    await made.redis.aclose()


async def test_events_are_appended_in_row_order_and_rows_deleted(setup: Setup) -> None:
    rng = random.Random(5)
    expected: dict[int, list[dict[str, object]]] = {}
    for row in range(3 * PAGE_ROWS_MAX):
        events = [event(f"{rng.getrandbits(64):x}", row) for _ in range(rng.randint(1, 5))]
        partition = rng.randrange(3)
        expected.setdefault(partition, []).extend(events)
        put(setup.dsn, partition, events)
    put(setup.dsn, 1, [event("other", 1)], destination="notices")
    async with setup.running():
        await until(lambda: waiting_rows(setup.dsn) == 1)
        put(setup.dsn, 15, [event("later", 1)])
        await until(lambda: waiting_rows(setup.dsn) == 1)
    for partition, events in expected.items():
        assert await setup.logged(partition) == events
    assert await setup.logged(15) == [event("later", 1)]


async def test_a_row_larger_than_one_append_is_told_whole(setup: Setup) -> None:
    events = [event("k", version) for version in range(2_500)]
    put(setup.dsn, 4, events)
    async with setup.running():
        await until(lambda: waiting_rows(setup.dsn) == 0)
    assert await setup.logged(4) == events


async def test_a_row_that_fails_half_way_is_appended_once(setup: Setup) -> None:
    """Each try appended the first thousand records again: the log grew without an end while the second step failed."""
    events = [event("k", version) for version in range(2_500)]
    failures = 0

    class HalfWay:
        """The real log; the step with this record fails several times."""

        def __getattr__(self, name: str) -> object:
            return getattr(setup.log, name)

        async def append(self, topic: str, partition: int, records: Sequence[NewRecord]) -> None:
            nonlocal failures
            if failures < 3 and any(record.headers["ce_version"] == "1200" for record in records):
                failures += 1
                raise EventLogUnavailable(topic, partition, "told to")
            await setup.log.append(topic, partition, records)

    setup.destination = EventTopic(DESTINATION_ORDER_EVENTS, cast(EventLog, HalfWay()))
    put(setup.dsn, 4, events)
    async with setup.running():
        await until(lambda: waiting_rows(setup.dsn) == 0)
    assert failures == 3
    assert await setup.logged(4) == events


async def test_a_failing_partition_keeps_its_rows_in_order_and_delays_no_other(setup: Setup) -> None:
    destination = Failing(setup.destination, [2])
    setup.destination = destination
    for row in range(20):
        for partition in (1, 2, 3):
            put(setup.dsn, partition, [event(f"p{partition}", row)])
    async with setup.running():
        await until(lambda: waiting_rows(setup.dsn) == 20)
        assert await setup.logged(2) == []
        put(setup.dsn, 2, [event("p2", 20)])
        destination.failing.clear()
        await until(lambda: waiting_rows(setup.dsn) == 0)
    assert [e["version"] for e in await setup.logged(2)] == list(range(21))
    assert [e["version"] for e in await setup.logged(3)] == list(range(20))


async def test_a_malformed_row_goes_to_the_dead_letters(setup: Setup) -> None:
    put(setup.dsn, 0, [event("before", 1)])
    put(setup.dsn, 0, [{"id": "no key"}])
    put(setup.dsn, 0, ["text"])
    put(setup.dsn, 0, [event("after", 1)])
    async with setup.running():
        await until(lambda: waiting_rows(setup.dsn) == 0)
    assert [e["key"] for e in await setup.logged(0)] == ["before", "after"]
    letters, _ = await setup.letters.list(POISON_OUTBOX)
    assert [letter.reason for letter in letters] == ["outbox row: event 0 has no key"] * 2
    assert orjson.loads(letters[0].body) == [{"id": "no key"}]
    assert letters[0].headers == {"destination": DESTINATION_ORDER_EVENTS, "partition": "0"}
    assert letters[0].message_id.startswith(f"{DATABASE}:")


async def test_a_page_that_is_tried_again_buries_nothing_again(setup: Setup) -> None:
    """The destination is away, then the database lets nothing be deleted: one dead letter all the same."""
    destination = Failing(setup.destination, [2])
    setup.destination = destination
    put(setup.dsn, 2, [event("before", 1)])
    put(setup.dsn, 2, ["text"])
    put(setup.dsn, 2, [event("after", 1)])

    async def told(count: int) -> bool:
        return len(await setup.logged(2)) >= count

    with psycopg.connect(setup.dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'told to'; END $$;"
            "CREATE TRIGGER refuse BEFORE DELETE ON outbox EXECUTE FUNCTION refuse()"
        )
    try:
        async with setup.running():
            await until(lambda: destination.failures >= 3)
            destination.failing.clear()
            await eventually(lambda: told(6))  # rows that are not deleted are delivered again
            assert waiting_rows(setup.dsn) == 3
            with psycopg.connect(setup.dsn, autocommit=True) as connection:
                connection.execute("DROP TRIGGER refuse ON outbox")
            await until(lambda: waiting_rows(setup.dsn) == 0)
    finally:
        with psycopg.connect(setup.dsn, autocommit=True) as connection:
            connection.execute("DROP FUNCTION refuse CASCADE")
    letters, _ = await setup.letters.list(POISON_OUTBOX)
    assert [orjson.loads(letter.body) for letter in letters] == [["text"]]


async def test_full_dead_letters_delay_only_malformed_rows(setup: Setup) -> None:
    small = setup.letters = PostgresDeadLetters(setup.catalogue, letters_max=1)
    for number in range(3):
        put(setup.dsn, 2, [f"text {number}"])
        put(setup.dsn, 2, [event("k", number)])

    async def told(count: int) -> bool:
        return len(await setup.logged(2)) == count

    async def letters() -> list[DeadLetter]:
        return (await small.list(POISON_OUTBOX))[0]

    async with setup.running():
        await until(lambda: waiting_rows(setup.dsn) == 2)
        put(setup.dsn, 2, [event("k", 3)])
        await eventually(lambda: told(4))
        await until(lambda: waiting_rows(setup.dsn) == 2)
        bodies = []
        for _ in range(3):
            await eventually(letters)
            (letter,) = await letters()
            bodies.append(orjson.loads(letter.body))
            assert await small.delete(letter.id)
        await until(lambda: waiting_rows(setup.dsn) == 0)
    assert bodies == [["text 0"], ["text 1"], ["text 2"]]
    assert [e["version"] for e in await setup.logged(2)] == [0, 1, 2, 3], "each was told once"


async def test_a_lost_lease_ends_the_work_and_what_stays_is_told_by_the_next(setup: Setup) -> None:
    assert await setup.lease.acquire()
    task = asyncio.create_task(setup.group().run())
    put(setup.dsn, 0, [event("a", 1)])
    await until(lambda: waiting_rows(setup.dsn) == 0)
    setup.lease.lost.set()
    await asyncio.wait_for(task, WAIT_S)
    put(setup.dsn, 0, [event("a", 2)])
    await setup.redis.delete(setup.lease.key)
    async with setup.running():
        await until(lambda: waiting_rows(setup.dsn) == 0)
    assert [e["version"] for e in await setup.logged(0)] == [1, 2]


async def test_delete_removes_exactly_the_given_rows_and_measure_counts_the_rest(setup: Setup) -> None:
    for partition in range(OUTBOX_PARTITIONS):
        put(setup.dsn, partition, [event("k", partition)])
    put(setup.dsn, 3, [event("n", 1)], destination=DESTINATION_NOTICES)
    outbox = Outbox(setup.pool)
    third = Place(DESTINATION_ORDER_EVENTS, 3)
    wanted = [Place(DESTINATION_ORDER_EVENTS, 0), third, Place(DESTINATION_NOTICES, 3), Place(DESTINATION_NOTICES, 9)]
    pages = await outbox.next_rows(wanted, rows_max=5)
    assert {place: len(rows) for place, rows in pages.items()} == dict.fromkeys(wanted[:3], 1)
    await outbox.delete([pages[third][0].id, 10**12])
    await outbox.delete([pages[third][0].id])
    lags = await outbox.measure([DESTINATION_ORDER_EVENTS, DESTINATION_NOTICES, "nothing"])
    assert {destination: lag.rows for destination, lag in lags.items()} == {
        DESTINATION_ORDER_EVENTS: OUTBOX_PARTITIONS - 1, DESTINATION_NOTICES: 1, "nothing": 0,
    }  # fmt: skip
    assert lags[DESTINATION_ORDER_EVENTS].age_s >= 0
    assert lags["nothing"].age_s == 0
    assert third not in await outbox.next_rows(wanted, rows_max=5)


async def test_headers_leave_the_event_and_reach_the_record(setup: Setup) -> None:
    traced = event("k", 1) | {"headers": {"traceparent": "00-ab"}}
    malformed = event("k", 2) | {"headers": {"a": 1}}
    put(setup.dsn, 2, [traced, malformed, event("k", 3)])
    async with setup.running():
        await until(lambda: waiting_rows(setup.dsn) == 0)
    records = await setup.records(2)
    attributes = {
        "ce_specversion": "1.0", "ce_source": "urn:flashsale:order", "ce_type": "order.reserved",
        "ce_time": "2027-01-15T08:00:00.123Z", "ce_subject": "order of k", "content-type": "application/json",
        "ce_dataschema": "urn:flashsale:schema:order:1",
    }  # fmt: skip
    assert [record.headers for record in records] == [
        {"traceparent": "00-ab", **attributes, "ce_id": "k:1", "ce_version": "1"},
        {**attributes, "ce_id": "k:2", "ce_version": "2"},
        {**attributes, "ce_id": "k:3", "ce_version": "3"},
    ]
    assert [(record.key, record.value) for record in records] == [("k", b'{"order_id":"k"}')] * 3


async def test_headers_of_a_notice_reach_its_message(setup: Setup) -> None:
    setup.destination = QueueMessages(DESTINATION_NOTICES, setup.queue, EMAIL_QUEUE)
    put(setup.dsn, 3, [{"id": "n", "key": "k", "headers": {"traceparent": "00-ab"}}], destination=DESTINATION_NOTICES)
    async with setup.running(), setup.queue.consume(EMAIL_QUEUE, prefetch=1) as consumer:
        (delivery,) = await consumer.next_batch(count_max=1, wait_s=WAIT_S)
        assert (delivery.headers, orjson.loads(delivery.body)) == ({"traceparent": "00-ab"}, {"id": "n", "key": "k"})
        await delivery.ack()


async def test_rows_of_the_release_before_keep_their_keys_and_payments_find_their_topic(setup: Setup) -> None:
    """Without `subject`, payments also without `version`, and payments among the events of orders."""
    old = {name: value for name, value in event("k", 2).items() if name != "subject"}
    payment = {
        "id": "evt_1:captured", "type": "payment.captured", "schema": 1, "key": "k", "time_ms": 5, "data": {"event_id": "evt_1"},
    }  # fmt: skip
    put(setup.dsn, 2, [event("k", 1), payment, old])
    async with setup.running():
        await until(lambda: waiting_rows(setup.dsn) == 0)
    assert await setup.logged(2) == [event("k", 1), old | {"subject": "k"}]
    assert await setup.logged(2, TOPIC_PAYMENTS) == [payment | {"subject": "k", "version": 0}]


@pytest.mark.parametrize("text", ["{}", "[1]", '[{"key": 1}]', "[", '"x"', '[{"key": "a"}, null]'])
def test_malformed_events(text: str) -> None:
    for destination in (
        EventTopic(DESTINATION_ORDER_EVENTS, cast(EventLog, None)),
        QueueMessages("q", cast(Queue, None), "q"),
    ):
        with pytest.raises(MalformedEvents):
            destination.events_of(text)


@pytest.mark.parametrize(
    "wrong",
    [{"id": ""}, {"id": 1}, {"type": None}, {"schema": "1"}, {"schema": True}, {"version": -1}, {"time_ms": 1.5},
     {"time_ms": 10**18}, {"subject": ""}, {"data": []}],
)  # fmt: skip
def test_events_that_cannot_become_records(wrong: dict[str, object]) -> None:
    topic = EventTopic(DESTINATION_ORDER_EVENTS, cast(EventLog, None))
    assert len(topic.events_of(orjson.dumps([event("k", 1)]).decode())) == 1
    with pytest.raises(MalformedEvents):
        topic.events_of(orjson.dumps([event("k", 1) | wrong]).decode())


def test_one_aggregate_stays_in_one_partition() -> None:
    assert outbox_partition("a") == outbox_partition("a")
    assert {outbox_partition(str(i)) for i in range(500)} == set(range(OUTBOX_PARTITIONS))


class Hanging:
    """A destination that has the events and does not answer, as a paused log."""

    name = DESTINATION_ORDER_EVENTS

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()
        self.count = 0

    def events_of(self, text: str) -> list[Event]:
        return [Event("k", text.encode())]

    async def deliver(self, partition: int, events: Sequence[Event]) -> None:  # noqa: ARG002
        self.asked.set()
        self.count += 1
        await self.answer.wait()


async def test_a_group_dispatches_again_after_its_lease_was_lost_with_a_delivery_under_way(setup: Setup) -> None:
    put(setup.dsn, 3, [event("o", 1)])
    log, hanging = setup.destination, Hanging()
    setup.destination = hanging
    group = setup.group()
    assert await setup.lease.acquire()
    tenure = asyncio.create_task(group.run())
    await asyncio.wait_for(hanging.asked.wait(), WAIT_S)
    setup.lease.lost.set()
    await asyncio.wait_for(tenure, WAIT_S)
    for partition in group._partitions.values():
        partition.destination = log
    await setup.redis.delete(setup.lease.key)
    assert await setup.lease.acquire()
    tenure = asyncio.create_task(group.run())
    await until(lambda: waiting_rows(setup.dsn) == 0)
    setup.service.stopping.set()
    await asyncio.wait_for(tenure, WAIT_S)
    await setup.lease.release()
    assert await setup.logged(3) == [event("o", 1)]


async def test_a_destination_that_hangs_delays_no_other(setup: Setup) -> None:
    """All destinations of a database share a query: a silent one held up the rows of the others otherwise."""
    hanging = Hanging()
    setup.others = [hanging]
    hanging.name = DESTINATION_NOTICES
    for partition in range(OUTBOX_PARTITIONS):
        put(setup.dsn, partition, [event("n", partition)], destination=DESTINATION_NOTICES)
    async with setup.running():
        await asyncio.wait_for(hanging.asked.wait(), WAIT_S)
        for version in range(3):
            put(setup.dsn, 3, [event("k", version)])
            await until(lambda: waiting_rows(setup.dsn) == OUTBOX_PARTITIONS)
        assert hanging.count == OUTBOX_PARTITIONS, "each row was sent once and is still under way"
        hanging.answer.set()
        await until(lambda: waiting_rows(setup.dsn) == 0)
    assert [e["version"] for e in await setup.logged(3)] == [0, 1, 2]


async def test_one_query_reads_all_destinations(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many destinations there are; and an empty outbox is only asked whether it still is."""
    asked: list[int] = []
    looks = 0
    next_rows, is_empty = Outbox.next_rows, Outbox.is_empty

    async def looked(outbox: Outbox) -> bool:
        nonlocal looks
        looks += 1
        return await is_empty(outbox)

    async def counted(outbox: Outbox, places: Sequence[Place], *, rows_max: int) -> dict[Place, list[OutboxRow]]:
        asked.append(len(places))
        return await next_rows(outbox, places, rows_max=rows_max)

    monkeypatch.setattr(Outbox, "next_rows", counted)
    monkeypatch.setattr(Outbox, "is_empty", looked)
    setup.others = [QueueMessages(DESTINATION_NOTICES, setup.queue, EMAIL_QUEUE)]
    async with setup.running():
        await until(lambda: looks >= 3)
        assert asked == [2 * OUTBOX_PARTITIONS]
        put(setup.dsn, 3, [event("k", 1)])
        await until(lambda: waiting_rows(setup.dsn) == 0)
        assert asked[1] == 2 * OUTBOX_PARTITIONS


async def test_notices_wait_for_room_in_their_queue(setup: Setup, redis_server: RedisServer) -> None:
    """A full queue delays; each notice is there at least once, under its own id, and in the queue of letters."""
    small = open_queue(redis_server.url, TOPOLOGY.queues, length_max=2)
    setup.destination = QueueMessages(DESTINATION_NOTICES, small, EMAIL_QUEUE)
    for number in range(5):
        put(setup.dsn, 3, [{"id": f"n{number}", "key": "k"}], destination=DESTINATION_NOTICES)
    put(setup.dsn, 3, [event("k", 1)])  # another destination's: not ours to send
    arrived: dict[str, bytes] = {}
    async with setup.running(), small.consume(EMAIL_QUEUE, prefetch=1) as consumer:
        async with asyncio.timeout(WAIT_S):
            while len(arrived) < 5:
                for delivery in await consumer.next_batch(count_max=1, wait_s=0.1):
                    arrived[delivery.message_id] = delivery.body
                    await delivery.ack()
        await until(lambda: waiting_rows(setup.dsn) == 1)
    assert {name: orjson.loads(body)["id"] for name, body in arrived.items()} == {f"n{n}": f"n{n}" for n in range(5)}
    await small.close()


async def test_rows_that_cannot_be_deleted_are_not_ready(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that waits for a standby in COMMIT answers every question, so that only the deletion shows it."""
    broken = True
    delete = Outbox.delete

    async def broken_delete(outbox: Outbox, ids: Sequence[int]) -> None:
        if broken:
            raise psycopg.OperationalError("no answer")
        await delete(outbox, ids)

    async def says_so() -> bool:
        return setup.service.checks.get(DATABASE) == (False, "no answer")

    async def is_ready() -> bool:
        return setup.service.is_ready

    monkeypatch.setattr(Outbox, "delete", broken_delete)
    async with setup.running():
        put(setup.dsn, 0, [event("k", 1)])
        await eventually(says_so)
        broken = False
        await eventually(is_ready)
