"""The contract of the event log port.

An adapter passes it by adding itself to the fixture; the tests stay unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
import redis

from devstack.servers import RedisServer
from domain.topology import TopicSpec
from runtime.event_log import (
    EventLog,
    EventLogUnavailable,
    Lag,
    LogRecord,
    NewRecord,
    Overtaken,
    UnknownEventLogScheme,
    UnknownTopic,
    WentBack,
    open_event_log,
)
from runtime.event_log.redis_streams import stream_key

RECORDS_MAX = 1_000
WAIT_S = 10.0
SPECS = (
    TopicSpec("orders", 16),
    TopicSpec("users", 2),
    TopicSpec("products", 1),
    TopicSpec("small", 1, records_max=100),
)


@pytest.fixture(params=["redis"])
async def event_log(request: pytest.FixtureRequest) -> AsyncIterator[EventLog]:
    assert request.param == "redis"
    request.getfixturevalue("redis_client")  # empties the server
    server: RedisServer = request.getfixturevalue("redis_server")
    opened = open_event_log(server.url, SPECS, records_max=RECORDS_MAX)
    yield opened
    await opened.close()


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


async def test_retention_drops_the_oldest(event_log: EventLog) -> None:
    for page in range(5):
        await event_log.append("orders", 0, numbered(range(page * 500, page * 500 + 500)))
        await event_log.append("small", 0, numbered(range(page * 500, page * 500 + 500)))
    for topic, bound in (("orders", RECORDS_MAX), ("small", 100)):
        records = await read_all(event_log, topic, 0)
        assert bound <= len(records) < 2_500
        assert [int(r.value) for r in records] == list(range(2_500 - len(records), 2_500))
    assert len(await read_all(event_log, "small", 0)) < RECORDS_MAX


async def test_a_reader_that_retention_overtook_learns_the_lost_range_once(event_log: EventLog) -> None:
    await event_log.append("small", 0, numbered([0, 1]))
    async with event_log.reader("slow", "small", (0,)) as reader:
        [zero] = await reader.next_batch(count_max=1, wait_s=0)
        await reader.commit()
    for page in range(4):
        await event_log.append("small", 0, numbered(range(2 + page * 500, 502 + page * 500)))
    retained = await read_all(event_log, "small", 0)
    async with event_log.reader("slow", "small", (0,)) as reader:
        with pytest.raises(Overtaken) as caught:
            await reader.next_batch(count_max=10, wait_s=0)
        assert (caught.value.topic, caught.value.partition) == ("small", 0)
        assert (caught.value.first_lost, caught.value.last_lost) == (zero.offset + 1, retained[0].offset - 1)
        assert await reader.next_batch(count_max=10, wait_s=0) == retained[:10]


async def test_a_new_group_begins_at_the_oldest_record_and_was_not_overtaken(event_log: EventLog) -> None:
    for page in range(4):
        await event_log.append("small", 0, numbered(range(page * 500, page * 500 + 500)))
    assert (await read_all(event_log, "small", 0, group="new"))[0].offset > 1


async def test_a_log_that_lost_its_data_is_read_from_its_beginning(
    event_log: EventLog, redis_client: redis.Redis
) -> None:
    await event_log.append("orders", 0, numbered(range(5)))
    async with event_log.reader("g", "orders", (0,)) as reader:
        await reader.next_batch(count_max=10, wait_s=0)
        redis_client.flushall()
        await event_log.append("orders", 0, numbered([7]))
        with pytest.raises(WentBack) as caught:
            await reader.next_batch(count_max=10, wait_s=0)
        assert (caught.value.position - caught.value.end, caught.value.partition) == (4, 0)
        assert [r.value for r in await reader.next_batch(count_max=10, wait_s=0)] == [b"7"]


async def test_a_partition_that_lost_its_data_is_noticed_while_others_are_busy(
    event_log: EventLog, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would be quiet until it has outgrown the position: everything up to there would never be read."""
    monkeypatch.setattr("runtime.event_log.redis_streams.ENDS_CHECKED_S", 0.05)
    for partition, count in ((0, 50), (1, 1)):
        await event_log.append("orders", partition, numbered(range(count)))
    async with event_log.reader("g", "orders", (0, 1)) as reader:
        assert len(await reader.next_batch(count_max=100, wait_s=0)) == 51
        redis_client.flushall()
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


async def test_unreachable_log_is_unavailable_and_keeps_what_it_acknowledged(own_redis: RedisServer) -> None:
    event_log = open_event_log(own_redis.url, SPECS)
    await event_log.append("orders", 0, numbered([0, 1]))
    async with event_log.reader("g", "orders", (0,)) as reader:
        assert len(await reader.next_batch(count_max=1, wait_s=0)) == 1  # there is something to commit
        own_redis.kill()
        for operation in (
            event_log.append("orders", 0, numbered([2])),
            reader.next_batch(count_max=1, wait_s=0),
            reader.commit(),
            reader.lag(),
        ):
            with pytest.raises(EventLogUnavailable):
                await operation
        own_redis.start()
        assert [r.value for r in await reader.next_batch(count_max=10, wait_s=WAIT_S)] == [b"1"]
    await event_log.close()


def test_schemes_without_an_adapter_are_named() -> None:
    with pytest.raises(UnknownEventLogScheme, match="kafka"):
        open_event_log("kafka://localhost:9092", SPECS)


@pytest.mark.parametrize(
    "fields",
    [
        {"foreign": "entry"},
        {"k": "key", "v": "value", "t": "soon"},
        {"k": "key", "v": "value", "t": "1", "h": "{"},
        {"k": "key", "v": "value", "t": "1", "h": "[]"},
        {"k": "key", "v": "value", "t": "1", "h": '{"a": 1}'},
        {"k": b"\xff", "v": "value", "t": "1"},
    ],
)
async def test_a_foreign_record_stops_no_reader(
    event_log: EventLog, redis_client: redis.Redis, fields: dict[str, str]
) -> None:
    """Such a record ended its reader, at each attempt."""
    await event_log.append("products", 0, numbered([1]))
    redis_client.xadd(stream_key("products", 0), fields, id="0-2")  # type: ignore[arg-type]
    await event_log.append("products", 0, numbered([3]))
    before, foreign, after = await read_all(event_log, "products", 0)
    assert (before.problem, before.value, after.problem, after.value) == (None, b"1", None, b"3")
    assert foreign.problem is not None and "undecodable" in foreign.problem
    assert (foreign.offset, foreign.key, foreign.headers) == (2, "", {})
