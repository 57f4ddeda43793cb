"""A request finds the shard of its bucket while the bucket moves, and the settings of a shard that is added."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from domain.topology import BUCKETS, BucketMap, Topology
from runtime.buckets import gate
from runtime.buckets.gate import BucketDatabase, BucketMoves
from runtime.postgres.databases import Database
from runtime.postgres.positions import Positions
from tests.workers.writing import Bench

BUCKET = 7  # of shard 0 by the first map


def _bucket(bench: Bench, topology: Topology) -> BucketDatabase:
    positions = Positions(bench.redis)
    shards = [
        Database(f"shard_{number}", pool, replica=None, positions=positions) for number, pool in enumerate(bench.pools)
    ]
    return BucketDatabase(BUCKET, shards, topology, {})


def _close(bench: Bench, shard: int, state: str, other: int) -> None:
    with psycopg.connect(bench.databases.shard_dsns[shard]) as connection:
        connection.execute(
            "INSERT INTO closed_buckets VALUES (%s, %s, %s) "
            "ON CONFLICT (bucket) DO UPDATE SET state = excluded.state, shard = excluded.shard",
            (BUCKET, state, other),
        )


async def _database(bucket: BucketDatabase) -> str:
    async with bucket.connection() as connection:
        row = await (await connection.execute("SELECT current_database()")).fetchone()
    assert row is not None
    return str(row[0])


async def test_a_write_waits_for_a_frozen_bucket_and_follows_it(bench: Bench) -> None:
    topology = Topology()
    bucket = _bucket(bench, topology)
    assert await _database(bucket) == "shard_0"
    _close(bench, 0, "frozen", 3)
    waiting = asyncio.create_task(_database(bucket))
    await asyncio.sleep(5 * gate.LOOK_S)
    assert not waiting.done()

    _close(bench, 0, "elsewhere", 3)

    assert await waiting == "shard_3"
    assert topology.shard_of_bucket(BUCKET) == 3  # learned from the shard, before any new map


async def test_a_bucket_that_stays_frozen_is_said_to_move(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MOVING_S_MAX", 0.1)
    _close(bench, 0, "frozen", 3)
    with pytest.raises(BucketMoves, match="bucket 7 is moving"):
        await _database(_bucket(bench, Topology()))


async def test_reads_do_not_wait_for_a_frozen_bucket(bench: Bench) -> None:
    _close(bench, 0, "frozen", 3)

    async def one(connection: psycopg.AsyncConnection) -> object:
        return await (await connection.execute("SELECT 1")).fetchone()

    assert await _bucket(bench, Topology()).read(one, subjects=["user:1"]) == (1,)


def test_an_added_shard_changes_neither_the_first_map_nor_the_fingerprint() -> None:
    four, five = Topology(shards=4), Topology(shards=5, first_shards=4)
    assert four.fingerprint == five.fingerprint != Topology(shards=5).fingerprint
    assert [four.shard_of_bucket(b) for b in range(BUCKETS)] == [five.shard_of_bucket(b) for b in range(BUCKETS)]
    assert five.queues[4].name == "orders.shard.4"


def test_only_a_newer_map_is_taken_over() -> None:
    known = BucketMap()
    assert known.adopt(2, {5: 1})
    assert not known.adopt(2, {5: 3})
    assert not known.adopt(1, {})
    assert known.owner(5) == 1
