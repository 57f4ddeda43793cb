"""The contract of the event log port. Every adapter passes this suite; the fixture is the seam for the next one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from devstack.servers import RedisServer
from runtime.event_log import EventLog, EventLogUnavailable, UnknownEventLogScheme, open_event_log

RECORDS_MAX = 1_000


@pytest.fixture(params=["redis"])
async def event_log(request: pytest.FixtureRequest) -> AsyncIterator[EventLog]:
    assert request.param == "redis"
    request.getfixturevalue("redis_client")  # empties the server
    server: RedisServer = request.getfixturevalue("redis_server")
    opened = open_event_log(server.url, records_max=RECORDS_MAX)
    yield opened
    await opened.close()


async def test_records_are_read_in_order_from_any_position(event_log: EventLog) -> None:
    first = [(f"k{i}", b"%d" % i) for i in range(10)]
    second = [("größe", bytes(range(256))), ("", b"")]
    await event_log.append("orders", 3, first)
    await event_log.append("orders", 3, second)
    records = await event_log.read("orders", 3, after=None, limit=100)
    assert [(r.key, r.value) for r in records] == first + second
    assert records[0].at_ms > 1_600_000_000_000
    rest = await event_log.read("orders", 3, after=records[4].position, limit=100)
    assert rest == records[5:]
    assert await event_log.read("orders", 3, after=records[4].position, limit=2) == records[5:7]
    assert await event_log.read("orders", 3, after=records[-1].position, limit=2) == []
    assert await event_log.length("orders", 3) == 12


async def test_partitions_and_topics_are_apart(event_log: EventLog) -> None:
    await asyncio.gather(*(event_log.append("orders", p, [("k", b"%d" % p)]) for p in range(16)))
    await event_log.append("users", 0, [("k", b"user")])
    for p in range(16):
        [record] = await event_log.read("orders", p, after=None, limit=10)
        assert record.value == b"%d" % p
    assert await event_log.read("products", 0, after=None, limit=10) == []


async def test_a_waiting_reader_is_woken_and_an_idle_one_gets_nothing(event_log: EventLog) -> None:
    waiting = asyncio.create_task(event_log.read("orders", 0, after=None, limit=10, wait_ms=3_000))
    await asyncio.sleep(0.05)
    await event_log.append("orders", 0, [("k", b"v")])
    [record] = await waiting
    assert record.value == b"v"
    assert await event_log.read("orders", 0, after=record.position, limit=10, wait_ms=50) == []


async def test_groups_commit_their_own_positions(event_log: EventLog) -> None:
    await event_log.append("orders", 1, [("k", b"1"), ("k", b"2")])
    one, two = await event_log.read("orders", 1, after=None, limit=10)
    assert await event_log.committed("analytics", "orders", 1) is None
    await event_log.commit("analytics", "orders", 1, one.position)
    await event_log.commit("other", "orders", 1, two.position)
    assert await event_log.committed("analytics", "orders", 1) == one.position
    assert await event_log.committed("other", "orders", 1) == two.position
    assert await event_log.committed("analytics", "orders", 2) is None
    assert await event_log.read("orders", 1, after=one.position, limit=10) == [two]


async def test_retention_drops_the_oldest(event_log: EventLog) -> None:
    for page in range(5):
        await event_log.append("orders", 0, [("k", b"%d" % (page * 500 + i)) for i in range(500)])
    length = await event_log.length("orders", 0)
    assert RECORDS_MAX <= length < 2_500
    records = await event_log.read("orders", 0, after=None, limit=5_000)
    assert [int(r.value) for r in records] == list(range(2_500 - length, 2_500))


async def test_unreachable_log_is_unavailable_and_keeps_what_it_acknowledged(own_redis: RedisServer) -> None:
    event_log = open_event_log(own_redis.url)
    await event_log.append("orders", 0, [("k", b"1")])
    own_redis.kill()
    with pytest.raises(EventLogUnavailable):
        await event_log.append("orders", 0, [("k", b"2")])
    with pytest.raises(EventLogUnavailable):
        await event_log.read("orders", 0, after=None, limit=1)
    own_redis.start()
    assert [r.value for r in await event_log.read("orders", 0, after=None, limit=10)] == [b"1"]
    await event_log.close()


def test_schemes_without_an_adapter_are_named() -> None:
    with pytest.raises(UnknownEventLogScheme, match="kafka"):
        open_event_log("kafka://localhost:9092")
