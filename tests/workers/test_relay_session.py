"""Sessions of one lane on a real Redis: everything arrives, nothing is trimmed before, no shard stops another."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psycopg
import pytest
import redis
from pydantic import SecretStr
from redis.asyncio import Redis

from devstack.servers import RedisServer
from domain.messages import decode_orders
from domain.topology import (
    POISON_ENTRIES,
    lane_fence_key,
    lane_lease_key,
    lane_relayed_key,
    lane_stream_key,
    order_queue,
)
from runtime.dead_letters import open_dead_letters
from runtime.queue import Queue, open_queue
from runtime.queue.redis_streams import stream_key
from runtime.redis.client import redis_client as new_client
from runtime.redis.leases import Lease
from runtime.redis.ownership import LeaseLost
from tests.fixtures.fix_databases import Databases
from tests.workers.lane_entries import TOPOLOGY, fill_lane, queued, queued_anywhere
from workers.relay import session as session_module
from workers.relay.session import LaneSession

LANE = 2
WAIT_S = 15.0


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - looks at another process
            await asyncio.sleep(0.02)


class Relay:
    """A session of the test's own."""

    def __init__(
        self, url: str, databases: Databases, *, length_max: int = 10_000, lease_ms: int = 5_000, batch_max: int = 100
    ) -> None:
        self.redis: Redis = new_client(url)
        self.queue: Queue = open_queue(url, TOPOLOGY.queues, length_max=length_max)
        self.letters = open_dead_letters(SecretStr(databases.catalogue_dsn))
        self.lease = Lease(self.redis, key=lane_lease_key(LANE), fence_key=lane_fence_key(LANE), life_ms=lease_ms)
        self.stopping = asyncio.Event()
        self._batch_max = batch_max

    def session(self) -> LaneSession:
        return LaneSession(
            LANE,
            redis=self.redis,
            queue=self.queue,
            letters=self.letters,
            lease=self.lease,
            topology=TOPOLOGY,
            batch_max=self._batch_max,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """The session at work; stopped in good order at the end unless it ended by itself."""
        assert await self.lease.acquire()
        task = asyncio.create_task(self.session().run(self.stopping))
        try:
            yield task
        finally:
            self.stopping.set()
            try:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait_for(task, WAIT_S)
            finally:
                await self.lease.release()
                await self.queue.close()
                await self.letters.close()
                await self.redis.aclose()


async def test_every_entry_arrives_in_its_shards_queue_and_the_stream_is_trimmed(
    redis_client: redis.Redis, redis_server: RedisServer, databases: Databases
) -> None:
    rng = random.Random(1)
    written = fill_lane(redis_client, rng, lane=LANE, count=5_000)
    async with Relay(redis_server.url, databases).running():
        await until(lambda: redis_client.xlen(lane_stream_key(LANE)) == 0)
        assert queued_anywhere(redis_client, lane=LANE) == written
        # Later ones wake a relay that has nothing to do.
        more = fill_lane(redis_client, rng, lane=LANE, count=3, first_seq=5_001)
        await until(lambda: redis_client.xlen(lane_stream_key(LANE)) == 0)
        assert queued_anywhere(redis_client, lane=LANE) == written | more
    for shard in range(TOPOLOGY.shards):
        for _, fields in redis_client.xrange(stream_key(order_queue(shard))):
            items = decode_orders(fields[b"b"])
            assert 1 <= len(items) <= 100
            assert fields[b"m"].decode() == f"{LANE}:{items[0].lane_seq}-{items[-1].lane_seq}"


async def test_a_full_queue_stops_no_other_shard_and_loses_nothing(
    redis_client: redis.Redis, redis_server: RedisServer, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "BACKLOG_ENTRIES_MAX", 50)
    monkeypatch.setattr(session_module, "PAGE_ENTRIES", 40)
    # Queue 1 is at its bound; the other queues are far from it.
    pipeline = redis_client.pipeline()
    for _ in range(1_000):
        pipeline.xadd(stream_key(order_queue(1)), {"filler": ""})
    pipeline.execute()
    written = fill_lane(redis_client, random.Random(2), lane=LANE, count=2_000)
    held_up = {seq for seq, entry in written.items() if shard_of(entry) == 1}
    others = {seq: entry for seq, entry in written.items() if seq not in held_up}
    async with Relay(redis_server.url, databases, length_max=1_000, batch_max=7).running():
        await until(lambda: queued_others(redis_client) == others)
        # Nothing from the first entry that queue 1 did not take has been trimmed.
        left = {int(i.partition(b"-")[0]) for i, _ in redis_client.xrange(lane_stream_key(LANE))}
        assert left == {seq for seq in written if seq >= min(held_up)}
        redis_client.delete(stream_key(order_queue(1)))
        await until(lambda: redis_client.xlen(lane_stream_key(LANE)) == 0)
    assert queued(redis_client, shard=1, lane=LANE).keys() == held_up
    assert queued_others(redis_client) == others


async def test_a_restart_publishes_nothing_again_while_a_queue_is_full(
    redis_client: redis.Redis, redis_server: RedisServer, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each restart published all entries of the healthy shards once more: 15,000, 30,000, 45,000 ..."""
    monkeypatch.setattr(session_module, "BACKLOG_ENTRIES_MAX", 50)
    monkeypatch.setattr(session_module, "NOTE_S", 0.05)
    pipeline = redis_client.pipeline()
    for _ in range(1_000):
        pipeline.xadd(stream_key(order_queue(1)), {"filler": ""})
    pipeline.execute()
    rng = random.Random(7)
    written = fill_lane(redis_client, rng, lane=LANE, count=2_000)
    for turn in range(4):
        others = {seq: entry for seq, entry in written.items() if shard_of(entry) != 1}
        relay = Relay(redis_server.url, databases, length_max=1_000, batch_max=10)
        async with relay.running() as session:
            await until(lambda others=others: queued_others(redis_client) == others)
            if turn == 2:  # a crash: what was confirmed since the last note is repeated, no more
                await until(lambda: redis_client.hlen(lane_relayed_key(LANE)) >= 3)
                await asyncio.sleep(0.3)
                session.cancel()
        written |= fill_lane(redis_client, rng, lane=LANE, count=100, first_seq=max(written) + 1)
    published = [
        item.lane_seq
        for shard in (0, 2, 3)
        for _, fields in redis_client.xrange(stream_key(order_queue(shard)))
        for item in decode_orders(fields[b"b"])
    ]
    assert len(published) == len(set(published)), "an entry was published twice"
    redis_client.delete(stream_key(order_queue(1)))
    async with Relay(redis_server.url, databases, length_max=1_000, batch_max=10).running():
        await until(lambda: redis_client.xlen(lane_stream_key(LANE)) == 0)
    assert queued_anywhere(redis_client, lane=LANE) == written


def shard_of(entry: bytes) -> int:
    return TOPOLOGY.shard_of_bucket((entry[34] & 0x3F) << 4 | entry[35] >> 4)


def queued_others(client: redis.Redis) -> dict[int, bytes]:
    return {seq: e for shard in (0, 2, 3) for seq, e in queued(client, shard=shard, lane=LANE).items()}


async def test_poison_goes_to_the_dead_letters_and_is_trimmed(
    redis_client: redis.Redis, redis_server: RedisServer, databases: Databases
) -> None:
    rng = random.Random(3)
    written = fill_lane(redis_client, rng, lane=LANE, count=10)
    stream = lane_stream_key(LANE)
    redis_client.xadd(stream, {"e": b"\xff" * 200}, id="11-0")
    redis_client.xadd(stream, {"other": b"field"}, id="12-0")
    written |= fill_lane(redis_client, rng, lane=LANE, count=10, first_seq=13)
    relay = Relay(redis_server.url, databases)
    async with relay.running():
        await until(lambda: redis_client.xlen(stream) == 0)
        letters, _ = await relay.letters.list(POISON_ENTRIES)
        assert {(letter.message_id, letter.headers["lane_seq"]) for letter in letters} == {
            (f"{LANE}:11", "11"),
            (f"{LANE}:12", "12"),
        }
        assert b"\xff" * 200 in {letter.body for letter in letters}
    assert queued_anywhere(redis_client, lane=LANE) == written


async def test_a_catalogue_that_is_away_keeps_poison_in_the_stream_and_delays_no_shard(
    redis_client: redis.Redis, redis_server: RedisServer, databases: Databases
) -> None:
    stream = lane_stream_key(LANE)
    redis_client.xadd(stream, {"e": b"\xff" * 200}, id="1-0")
    written = fill_lane(redis_client, random.Random(8), lane=LANE, count=10, first_seq=2)
    server = databases.catalogue_dsn.rpartition("/")[0] + "/postgres"

    def allow(*, connections: bool) -> None:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE catalogue WITH ALLOW_CONNECTIONS {connections}")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'catalogue'")

    relay = Relay(redis_server.url, databases)
    allow(connections=False)
    try:
        async with relay.running():
            await until(lambda: queued_anywhere(redis_client, lane=LANE) == written)
            assert redis_client.xlen(stream) == 11, "nothing behind the poison entry is trimmed"
            allow(connections=True)
            await until(lambda: redis_client.xlen(stream) == 0)
            assert await relay.letters.count() == {POISON_ENTRIES: 1}
    finally:
        allow(connections=True)


async def test_a_zombie_repeats_but_never_trims(
    redis_client: redis.Redis, redis_server: RedisServer, databases: Databases
) -> None:
    written = fill_lane(redis_client, random.Random(4), lane=LANE, count=500)
    relay = Relay(redis_server.url, databases)
    assert await relay.lease.acquire()
    # The lease ended in Redis and another relay has it; this one's own clock has not noticed.
    redis_client.set(lane_lease_key(LANE), relay.lease.token + 1)
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(relay.session().run(relay.stopping), WAIT_S)
    assert redis_client.xlen(lane_stream_key(LANE)) == 500
    assert queued_anywhere(redis_client, lane=LANE).items() <= written.items()
    await relay.lease.release()
    assert redis_client.get(lane_lease_key(LANE)) == b"2"
    await relay.queue.close()
    await relay.letters.close()
    await relay.redis.aclose()


async def test_a_session_ends_with_its_lease(
    redis_client: redis.Redis, redis_server: RedisServer, databases: Databases
) -> None:
    relay = Relay(redis_server.url, databases, lease_ms=500)
    async with relay.running() as task:
        redis_client.delete(lane_lease_key(LANE))
        await asyncio.wait_for(task, WAIT_S)
        assert not relay.lease.held
        fill_lane(redis_client, random.Random(5), lane=LANE, count=5)
    assert redis_client.xlen(lane_stream_key(LANE)) == 5


async def test_stopping_confirms_and_trims_what_is_in_flight(
    redis_client: redis.Redis, redis_server: RedisServer, databases: Databases
) -> None:
    written = fill_lane(redis_client, random.Random(6), lane=LANE, count=20_000)
    relay = Relay(redis_server.url, databases)
    async with relay.running():
        await until(lambda: queued_anywhere(redis_client, lane=LANE))
    left = {int(i.partition(b"-")[0]): f[b"e"] for i, f in redis_client.xrange(lane_stream_key(LANE))}
    assert redis_client.get(lane_lease_key(LANE)) is None
    assert left | queued_anywhere(redis_client, lane=LANE) == written
