"""The contract of the event log port, on each carrier: Redis Streams and Kafka.

An adapter passes it by adding a carrier to the fixture; the tests stay unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import pytest
import redis
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from devstack.children import free_port
from devstack.kafka import KafkaServer, Listener
from devstack.servers import RedisServer
from domain.topology import TopicSpec
from faults.proxy import FaultProxy, Harm, Trap
from runtime.event_log import (
    APPEND_RECORDS_MAX,
    RECORD_BYTES_MAX,
    EventLog,
    EventLogUnavailable,
    KafkaAccess,
    Lag,
    LogRecord,
    NewRecord,
    Overtaken,
    Reader,
    RecordTooLarge,
    UnknownEventLogScheme,
    UnknownTopic,
    WentBack,
    open_event_log,
)
from runtime.event_log.kafka_topics import TopicSettings, create_topics
from runtime.event_log.redis_streams import stream_key
from tests.fixtures.fix_kafka import delete_before, make_empty

RECORDS_MAX = 1_000
WAIT_S = 10.0
SPECS = (
    TopicSpec("orders", 16),
    TopicSpec("users", 2),
    TopicSpec("products", 1),
    TopicSpec("small", 1, records_max=100),
)


class Carrier(Protocol):
    """An adapter on a real server with empty topics, and the ways to harm it."""

    log: EventLog

    async def retain(self, topic: str, partition: int) -> None:
        """Let retention remove the oldest records of a partition that has 2,000 or more; some hundred stay at most."""
        ...

    async def empty(self, topic: str, partition: int) -> None:
        """Remove all records of a partition, as retention by age does."""
        ...

    async def lose_data(self) -> None:
        """Remove all records and offsets, as a server that lost its disk."""
        ...

    async def add_foreign(self, topic: str, partition: int, number: int) -> int:
        """Add a record that no adapter wrote, of several kinds, by its `number`; the number of kinds."""
        ...


class RedisCarrier:
    FOREIGN: tuple[Mapping[str, str | bytes], ...] = (
        {"foreign": "entry"},
        {"k": "key", "v": "value", "t": "soon"},
        {"k": "key", "v": "value", "t": "1", "h": "{"},
        {"k": "key", "v": "value", "t": "1", "h": "[]"},
        {"k": "key", "v": "value", "t": "1", "h": '{"a": 1}'},
        {"k": b"\xff", "v": "value", "t": "1"},
    )

    def __init__(self, server: RedisServer, client: redis.Redis) -> None:
        self.log: EventLog = open_event_log(server.url, SPECS, records_max=RECORDS_MAX)
        self._client = client

    async def retain(self, topic: str, partition: int) -> None:
        """Each append did."""

    async def empty(self, topic: str, partition: int) -> None:
        self._client.xtrim(stream_key(topic, partition), maxlen=0, approximate=False)

    async def lose_data(self) -> None:
        self._client.flushall()

    async def add_foreign(self, topic: str, partition: int, number: int) -> int:
        key = stream_key(topic, partition)
        self._client.xadd(key, self.FOREIGN[number], id=f"0-{self._client.xlen(key) + 1}")  # type: ignore[arg-type]
        return len(self.FOREIGN)


class KafkaCarrier:
    FOREIGN: tuple[Mapping[str, Any], ...] = (
        {"key": None, "value": b"value"},
        {"key": b"key", "value": None},
        {"key": b"\xff", "value": b"value"},
        {"key": b"key", "value": b"value", "headers": [("a", b"\xff")]},
        {"key": b"key", "value": b"value", "headers": [("a", None)]},
    )
    KEPT = 100

    def __init__(self, server: KafkaServer) -> None:
        self._url = server.url
        self.log: EventLog = open_event_log(server.url, SPECS)

    async def retain(self, topic: str, partition: int) -> None:
        await self._keep(topic, partition, self.KEPT)

    async def empty(self, topic: str, partition: int) -> None:
        await self._keep(topic, partition, 0)

    async def _keep(self, topic: str, partition: int, number: int) -> None:
        async with self.log.reader(None, topic, (partition,)) as reader:
            end = (await reader.lag())[partition].end
        await delete_before(self._url, topic, partition, end - number)

    async def lose_data(self) -> None:
        await make_empty(self._url, SPECS)

    async def add_foreign(self, topic: str, partition: int, number: int) -> int:
        async with AIOKafkaProducer(**KafkaAccess().arguments(self._url)) as producer:
            await producer.send_and_wait(topic, partition=partition, **self.FOREIGN[number])
        return len(self.FOREIGN)


@pytest.fixture(params=["redis", "kafka"])
async def carrier(request: pytest.FixtureRequest) -> AsyncIterator[Carrier]:
    made: Carrier
    if request.param == "redis":
        client = request.getfixturevalue("redis_client")  # empties the server
        made = RedisCarrier(request.getfixturevalue("redis_server"), client)
    else:
        server: KafkaServer = request.getfixturevalue("kafka_server")
        await make_empty(server.url, SPECS)
        made = KafkaCarrier(server)
    yield made
    await made.log.close()


@pytest.fixture
def event_log(carrier: Carrier) -> EventLog:
    return carrier.log


def numbered(numbers: Sequence[int]) -> list[NewRecord]:
    return [NewRecord("k", b"%d" % number) for number in numbers]


async def read_all(
    log: EventLog, topic: str, *partitions: int, group: str | None = None, commit: bool = False
) -> list[LogRecord]:
    """All records that the group has not read yet."""
    found: list[LogRecord] = []
    async with log.reader(group, topic, partitions) as reader:
        while batch := await reader.next_batch(count_max=500, wait_s=0):
            found += batch
        if commit:
            await reader.commit()
    return found


async def test_records_are_read_in_order_with_all_their_parts(event_log: EventLog) -> None:
    first = [NewRecord(f"k{i}", b"%d" % i) for i in range(10)]
    second = [NewRecord("größe", bytes(range(256)), {"traceparent": "00-ab-cd-01", "ü": ""}), NewRecord("", b"")]
    await event_log.append("orders", 3, first)
    await event_log.append("orders", 3, second)
    records = await read_all(event_log, "orders", 3)
    assert [NewRecord(r.key, r.value, r.headers) for r in records] == first + second
    assert {r.partition for r in records} == {3}
    assert [r.offset - records[0].offset for r in records] == list(range(12))
    assert records[0].at_ms > 1_600_000_000_000


async def test_partitions_and_topics_are_apart(event_log: EventLog) -> None:
    await asyncio.gather(*(event_log.append("orders", p, numbered([p])) for p in range(16)))
    await event_log.append("users", 0, [NewRecord("k", b"user")])
    for p in range(16):
        [record] = await read_all(event_log, "orders", p)
        assert record.value == b"%d" % p
    assert sorted(int(r.value) for r in await read_all(event_log, "orders", *range(16))) == list(range(16))
    assert await read_all(event_log, "products", 0) == []


async def test_a_batch_is_bounded_and_keeps_the_order_of_each_partition(event_log: EventLog) -> None:
    for partition in (0, 1):
        await event_log.append("users", partition, numbered(range(50)))
    seen: dict[int, list[int]] = {0: [], 1: []}
    async with event_log.reader(None, "users", (0, 1)) as reader:
        while batch := await reader.next_batch(count_max=7, wait_s=0):
            assert len(batch) <= 7
            for record in batch:
                seen[record.partition].append(int(record.value))
    assert seen == {0: list(range(50)), 1: list(range(50))}


async def test_a_waiting_reader_is_woken_and_an_idle_one_gets_nothing(event_log: EventLog) -> None:
    async with event_log.reader(None, "orders", (0, 5)) as reader:
        waiting = asyncio.create_task(reader.next_batch(count_max=10, wait_s=3))
        await asyncio.sleep(0.05)
        await event_log.append("orders", 5, numbered([1]))
        [record] = await waiting
        assert (record.partition, record.value) == (5, b"1")
        assert await reader.next_batch(count_max=10, wait_s=0.05) == []


async def test_groups_go_on_at_their_own_commits(event_log: EventLog) -> None:
    await event_log.append("orders", 1, numbered([1, 2, 3]))
    async with event_log.reader("analytics", "orders", (1, 2)) as reader:
        [one] = await reader.next_batch(count_max=1, wait_s=0)
        await reader.commit()
        [two] = await reader.next_batch(count_max=1, wait_s=0)
        assert (one.value, two.value) == (b"1", b"2")
    assert [r.value for r in await read_all(event_log, "orders", 1, 2, group="other", commit=True)] == [
        b"1",
        b"2",
        b"3",
    ]
    # Not committed, so it is read again.
    assert [r.value for r in await read_all(event_log, "orders", 1, 2, group="analytics", commit=True)] == [b"2", b"3"]
    for group in ("analytics", "other"):
        assert await read_all(event_log, "orders", 1, 2, group=group) == []
    await event_log.append("orders", 2, numbered([4]))
    assert [r.value for r in await read_all(event_log, "orders", 1, 2, group="other")] == [b"4"]


async def test_a_new_group_may_begin_at_the_end_and_goes_on_there(event_log: EventLog) -> None:
    """Also when its first reader ends before its first commit: the records after its start are not skipped."""
    await event_log.append("orders", 1, numbered([1, 2]))
    async with event_log.reader("late", "orders", (1, 2), begin_at_end=True) as reader:
        assert await reader.next_batch(count_max=10, wait_s=0) == []
        await event_log.append("orders", 1, numbered([3]))
        await event_log.append("orders", 2, numbered([4]))
    async with event_log.reader("late", "orders", (1, 2), begin_at_end=True) as reader:
        found = [await reader.next_batch(count_max=1, wait_s=0) for _ in range(2)]
        assert sorted(record.value for batch in found for record in batch) == [b"3", b"4"]


async def test_a_group_that_went_back_reads_again(event_log: EventLog) -> None:
    """Only the partitions that it names, and after a commit also in the group's next reader."""
    await event_log.append("orders", 1, numbered([1, 2, 3]))
    await event_log.append("orders", 2, numbered([4]))
    assert len(await read_all(event_log, "orders", 1, 2, group="again", commit=True)) == 4
    async with event_log.reader("again", "orders", (1, 2)) as reader:
        await reader.rewind({1: 1})
        assert [r.value for r in await reader.next_batch(count_max=10, wait_s=5)] == [b"2", b"3"]
        await reader.rewind({1: 1})
        await reader.commit()
    async with event_log.reader("again", "orders", (1, 2)) as reader:
        assert {partition: lag.position for partition, lag in (await reader.lag()).items()} == {1: 1, 2: 1}
        await reader.rewind({2: 7})
        assert (await reader.lag())[2].position == 1, "never forward"
    assert [r.value for r in await read_all(event_log, "orders", 1, 2, group="again")] == [b"2", b"3"]


async def test_a_reader_may_pass_over_records(event_log: EventLog) -> None:
    for partition in (0, 1):
        await event_log.append("users", partition, numbered(range(10)))
    async with event_log.reader("g", "users", (0, 1)) as reader:
        first = await reader.next_batch(count_max=5, wait_s=0)  # more are read, and not handed out yet
        lag = await reader.lag()
        ends = {partition: lag[partition].end for partition in (0, 1)}
        await event_log.append("users", 0, numbered([10]))
        await reader.skip({0: ends[0], 1: ends[1] - 2})
        await reader.skip({1: 1})  # never back
        rest: list[LogRecord] = []
        while batch := await reader.next_batch(count_max=5, wait_s=0):
            rest += batch
        await reader.commit()
    assert len(first) == 5
    assert [int(r.value) for r in rest if r.partition == 0] == [10]
    assert [int(r.value) for r in rest if r.partition == 1] == [8, 9]
    assert await read_all(event_log, "users", 0, 1, group="g") == []


async def test_a_commit_covers_the_records_that_were_handed_out_only(event_log: EventLog) -> None:
    await event_log.append("orders", 0, numbered(range(10)))
    async with event_log.reader("g", "orders", (0,)) as reader:
        await reader.next_batch(count_max=4, wait_s=0)
        await reader.commit()
    assert [int(r.value) for r in await read_all(event_log, "orders", 0, group="g")] == list(range(4, 10))


async def test_a_reader_knows_its_lag_and_the_end(event_log: EventLog) -> None:
    await event_log.append("orders", 0, numbered(range(10)))
    async with event_log.reader("g", "orders", (0, 1)) as reader:
        lag = await reader.lag()
        assert (lag[0].records, lag[1]) == (10, Lag(0, 0))
        batch = await reader.next_batch(count_max=4, wait_s=0)
        lag = await reader.lag()
        assert (lag[0].position, lag[0].records, lag[0].end) == (batch[-1].offset, 6, batch[-1].offset + 6)


async def test_retention_drops_the_oldest(carrier: Carrier) -> None:
    for page in range(5):
        await carrier.log.append("small", 0, numbered(range(page * 500, page * 500 + 500)))
    await carrier.retain("small", 0)
    records = await read_all(carrier.log, "small", 0)
    assert 100 <= len(records) < RECORDS_MAX
    assert [int(r.value) for r in records] == list(range(2_500 - len(records), 2_500))


@pytest.mark.usefixtures("redis_client")  # empties the server
async def test_redis_retains_by_number(redis_server: RedisServer) -> None:
    event_log = open_event_log(redis_server.url, SPECS, records_max=RECORDS_MAX)
    for page in range(5):
        await event_log.append("orders", 0, numbered(range(page * 500, page * 500 + 500)))
        await event_log.append("small", 0, numbered(range(page * 500, page * 500 + 500)))
    for topic, bound in (("orders", RECORDS_MAX), ("small", 100)):
        records = await read_all(event_log, topic, 0)
        assert bound <= len(records) < 2_500
    assert len(await read_all(event_log, "small", 0)) < RECORDS_MAX
    await event_log.close()


async def test_a_reader_that_retention_overtook_learns_the_lost_range_once(carrier: Carrier) -> None:
    event_log = carrier.log
    await event_log.append("small", 0, numbered([0, 1]))
    async with event_log.reader("slow", "small", (0,)) as reader:
        [zero] = await reader.next_batch(count_max=1, wait_s=0)
        await reader.commit()
    for page in range(4):
        await event_log.append("small", 0, numbered(range(2 + page * 500, 502 + page * 500)))
    await carrier.retain("small", 0)
    retained = await read_all(event_log, "small", 0)
    async with event_log.reader("slow", "small", (0,)) as reader:
        with pytest.raises(Overtaken) as caught:
            await reader.next_batch(count_max=10, wait_s=0)
        assert (caught.value.topic, caught.value.partition) == ("small", 0)
        assert (caught.value.first_lost, caught.value.last_lost) == (zero.offset + 1, retained[0].offset - 1)
        assert await reader.next_batch(count_max=10, wait_s=0) == retained[:10]


async def test_a_new_group_begins_at_the_oldest_record_and_was_not_overtaken(carrier: Carrier) -> None:
    event_log = carrier.log
    for page in range(4):
        await event_log.append("small", 0, numbered(range(page * 500, page * 500 + 500)))
    await carrier.retain("small", 0)
    assert (await read_all(event_log, "small", 0, group="new"))[0].offset > 1


async def test_a_new_reader_passes_over_a_partition_that_retention_emptied(carrier: Carrier) -> None:
    await carrier.log.append("orders", 0, numbered(range(5)))
    await carrier.empty("orders", 0)
    async with carrier.log.reader(None, "orders", (0, 1)) as reader:
        assert await reader.next_batch(count_max=10, wait_s=0) == []
        assert [(lag.position, lag.records) for lag in (await reader.lag()).values()] == [(5, 0), (0, 0)]
        await carrier.log.append("orders", 0, numbered([5]))
        assert [(r.offset, r.value) for r in await reader.next_batch(count_max=10, wait_s=5)] == [(6, b"5")]


async def test_a_log_that_lost_its_data_is_read_from_its_beginning(carrier: Carrier) -> None:
    event_log = carrier.log
    await event_log.append("orders", 0, numbered(range(5)))
    async with event_log.reader("g", "orders", (0,)) as reader:
        await reader.next_batch(count_max=10, wait_s=0)
        await carrier.lose_data()
        await event_log.append("orders", 0, numbered([7]))
        with pytest.raises(WentBack) as caught:
            await reader.next_batch(count_max=10, wait_s=0)
        assert (caught.value.position - caught.value.end, caught.value.partition) == (4, 0)
        assert [r.value for r in await reader.next_batch(count_max=10, wait_s=0)] == [b"7"]


async def test_a_partition_that_lost_its_data_is_noticed_while_others_are_busy(
    carrier: Carrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would be quiet until it has outgrown the position: everything up to there would never be read."""
    event_log = carrier.log
    monkeypatch.setattr("runtime.event_log.redis_streams.ENDS_CHECKED_S", 0.05)
    for partition, count in ((0, 50), (1, 1)):
        await event_log.append("orders", partition, numbered(range(count)))
    async with event_log.reader("g", "orders", (0, 1)) as reader:
        assert len(await reader.next_batch(count_max=100, wait_s=0)) == 51
        await carrier.lose_data()
        await event_log.append("orders", 0, numbered([7]))
        await event_log.append("orders", 1, numbered([0]))
        values: set[bytes] = set()
        async with asyncio.timeout(WAIT_S):
            while b"7" not in values:
                await event_log.append("orders", 1, numbered([1]))
                try:
                    values |= {record.value for record in await reader.next_batch(count_max=10, wait_s=1)}
                except WentBack as loss:
                    assert (loss.position, loss.end) == (50, 1)  # noqa: PT017 - perhaps not at the first batch


async def test_topics_that_are_not_declared_are_refused(event_log: EventLog) -> None:
    for topic, partition in (("nowhere", 0), ("users", 2), ("users", -1)):
        with pytest.raises(UnknownTopic):
            await event_log.append(topic, partition, numbered([1]))
        with pytest.raises(UnknownTopic):
            event_log.reader(None, topic, (partition,))


@pytest.mark.parametrize("kind", ["redis", "kafka"])
async def test_unreachable_log_is_unavailable_and_keeps_what_it_acknowledged(
    kind: str, request: pytest.FixtureRequest
) -> None:
    server: RedisServer | KafkaServer = request.getfixturevalue(f"own_{kind}")
    if kind == "kafka":
        await make_empty(server.url, SPECS)
    event_log = open_event_log(server.url, SPECS)
    await event_log.append("orders", 0, numbered([0, 1]))
    async with event_log.reader("g", "orders", (0,)) as reader:
        assert len(await reader.next_batch(count_max=1, wait_s=0)) == 1  # there is something to commit
        server.kill()
        for operation in (
            event_log.append("orders", 0, numbered([2])),
            event_log.append("orders", 1, numbered([2])),
            reader.commit(),
            reader.lag(),
            event_log.reader("other", "orders", (0,)).__aenter__(),
        ):
            with pytest.raises(EventLogUnavailable):
                await operation
        server.start()
        found = await until_read(reader, 1)
        assert found[0].value == b"1"
        await reader.commit()
        # The append that failed may be there, once for each attempt of the caller.
        await event_log.append("orders", 0, numbered([2]))
    values = [int(r.value) for r in await read_all(event_log, "orders", 0, group="g")]
    assert values in ([2], [2, 2])
    await event_log.close()


async def until_read(reader: Reader, count: int) -> list[LogRecord]:
    """Records in order, through faults."""
    found: list[LogRecord] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            try:
                found += await reader.next_batch(count_max=100, wait_s=1)
            except EventLogUnavailable:
                await asyncio.sleep(0.05)
    return found


async def test_the_largest_records_are_taken_and_larger_ones_refused(event_log: EventLog) -> None:
    largest = NewRecord("k", b"x" * (RECORD_BYTES_MAX - 2), {"a": ""})
    await event_log.append("products", 0, [largest] * 5)
    for larger in (
        NewRecord("k", b"x" * RECORD_BYTES_MAX),
        NewRecord("k", b"x" * (RECORD_BYTES_MAX - 2), {"a": "b"}),
        NewRecord("ü" * (RECORD_BYTES_MAX // 2 + 1), b""),
    ):
        with pytest.raises(RecordTooLarge):
            await event_log.append("products", 0, [NewRecord("k", b"small"), larger])
    records = await read_all(event_log, "products", 0)
    assert [NewRecord(r.key, r.value, r.headers) for r in records] == [largest] * 5


async def test_a_full_append_keeps_its_order(event_log: EventLog) -> None:
    """Several batches on Kafka."""
    page = [NewRecord("k", b"%06d" % number + b"x" * 4_000) for number in range(APPEND_RECORDS_MAX)]
    await event_log.append("products", 0, page)
    assert [r.value for r in await read_all(event_log, "products", 0)] == [record.value for record in page]


async def test_appends_of_many_callers_are_all_there(event_log: EventLog) -> None:
    """Four dispatchers share an event log; each waits for one append of a partition before the next."""

    async def dispatch(database: int) -> None:
        for number in range(20):
            records = [NewRecord(f"{database}", b"%d" % number)] * 3
            await asyncio.gather(*(event_log.append("orders", partition, records) for partition in range(16)))

    await asyncio.gather(*(dispatch(database) for database in range(4)))
    for partition in (0, 15):
        records = await read_all(event_log, "orders", partition)
        for database in range(4):
            ours = [int(r.value) for r in records if r.key == f"{database}"]
            assert ours == [number for number in range(20) for _ in range(3)]


def test_schemes_without_an_adapter_are_named() -> None:
    with pytest.raises(UnknownEventLogScheme, match="pulsar"):
        open_event_log("pulsar://localhost:6650", SPECS)


async def test_a_foreign_record_stops_no_reader(carrier: Carrier) -> None:
    """Such a record ended its reader, at each attempt."""
    event_log = carrier.log
    number, kinds = 0, 1
    await event_log.append("products", 0, numbered([0]))
    while number < kinds:
        kinds = await carrier.add_foreign("products", 0, number)
        number += 1
        await event_log.append("products", 0, numbered([number]))
    records = await read_all(event_log, "products", 0)
    assert [int(r.value) for r in records if r.problem is None] == list(range(kinds + 1))
    foreign = [r for r in records if r.problem is not None]
    assert [r.offset for r in foreign] == [2 * number + 2 for number in range(kinds)]
    for record in foreign:
        assert record.problem is not None and "undecodable" in record.problem
        assert (record.key, record.headers) == ("", {})


@pytest.mark.parametrize("kind", ["redis", "kafka"])
async def test_appends_and_reads_go_on_through_cut_connections(kind: str, request: pytest.FixtureRequest) -> None:
    """An append that failed is repeated by its caller, as the dispatcher does: in order, with duplicates at most."""
    with cuttable(kind, request) as (url, proxy):
        if kind == "kafka":
            await make_empty(url, SPECS)
        event_log = open_event_log(url, SPECS)
        reading = asyncio.create_task(read_through_cuts(event_log, until=99))
        for number in range(100):
            if number % 20 == 10:
                proxy.set_trap(Trap(Harm.AFTER if number % 40 == 10 else Harm.BEFORE, (b"cuttable",)))
            if number % 20 == 0:
                proxy.cut()
            await append_until_acknowledged(event_log, NewRecord("cuttable", b"%d" % number))
        values = [int(record.value) for record in await reading]
        assert proxy.counted["cut"] and proxy.counted["after"] and proxy.counted["before"]
        await event_log.close()
    assert list(dict.fromkeys(values)) == list(range(100))
    if kind == "kafka":
        assert len(values) == 100, "the idempotent producer repeats without effect"


@contextmanager
def cuttable(kind: str, request: pytest.FixtureRequest) -> Iterator[tuple[str, FaultProxy]]:
    """A server behind a proxy. A client of Kafka goes on at the address that the broker tells."""
    if kind == "redis":
        request.getfixturevalue("redis_client")
        with FaultProxy(request.getfixturevalue("redis_server").port) as proxy:
            yield f"redis://127.0.0.1:{proxy.port}/0", proxy
        return
    port = free_port()
    with FaultProxy(port) as proxy:
        server = KafkaServer(
            request.getfixturevalue("tmp_path") / "kafka",
            quick_start=True,
            doors=[Listener("PROXIED", port, proxy.port)],
        )
        server.start()
        try:
            yield f"kafka://127.0.0.1:{proxy.port}", proxy
        finally:
            server.stop()


async def append_until_acknowledged(event_log: EventLog, record: NewRecord) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await event_log.append("orders", 0, [record])
            except EventLogUnavailable:
                await asyncio.sleep(0.02)
            else:
                return


async def read_through_cuts(event_log: EventLog, *, until: int) -> list[LogRecord]:
    found: list[LogRecord] = []
    async with asyncio.timeout(90):
        async with event_log.reader(None, "orders", (0,)) as reader:
            while not found or int(found[-1].value) < until:
                found += await until_read(reader, 1)
    return found


async def test_kafka_retains_by_size(kafka_server: KafkaServer) -> None:
    """The broker removes whole segments; a reader that is behind them learns of the loss."""
    specs = (TopicSpec("short.v1", 1),)
    await make_empty(kafka_server.url, specs)
    await create_topics(kafka_server.url, specs, KafkaAccess(), TopicSettings(partition_mb_max=1))
    await set_configuration(kafka_server.url, "short.v1", {"segment.bytes": str(1024 * 1024), "retention.bytes": "1"})
    event_log = open_event_log(kafka_server.url, specs)
    await event_log.append("short.v1", 0, numbered([0]))
    async with event_log.reader("slow", "short.v1", (0,)) as reader:
        await reader.next_batch(count_max=1, wait_s=5)
        await reader.commit()
        page = [NewRecord("k", bytes(4_000))] * 200
        loss: Overtaken | None = None
        async with asyncio.timeout(60):
            while loss is None:
                await event_log.append("short.v1", 0, page)
                await asyncio.sleep(0.1)
                async with event_log.reader("slow", "short.v1", (0,)) as behind:
                    try:
                        await behind.next_batch(count_max=1, wait_s=0)
                    except Overtaken as overtaken:
                        loss = overtaken
    assert loss.first_lost == 2 and loss.last_lost > 200
    await event_log.close()


async def set_configuration(url: str, topic: str, values: dict[str, str]) -> None:
    admin = AIOKafkaAdminClient(**KafkaAccess().arguments(url))
    await admin.start()
    try:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, values)])
    finally:
        await admin.close()
