"""The client of a Redis Cluster on a real one: routing, redirection while a slot moves, scripts, and a lost node."""

from __future__ import annotations

import asyncio

import pytest
import redis
from redis.exceptions import RedisError, ResponseError

from devstack.redis_cluster import RedisCluster
from runtime.redis.addresses import ClusterAddress
from runtime.redis.client import redis_client
from runtime.redis.cluster import ClusterRedis, primaries_of, run_ids
from runtime.redis.hash_slots import slot_of
from runtime.redis.leases import Lease
from runtime.redis.scripts import load_script, run, run_many

ACQUIRE = load_script("runtime.redis", "lease_acquire-2")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis+cluster://h", ClusterAddress((("h", 6379),))),
        ("redis+cluster://h:1,i:2", ClusterAddress((("h", 1), ("i", 2)))),
        ("rediss+cluster://u:p%40,@[::1]:1,i", ClusterAddress((("::1", 1), ("i", 6379)), "u", "p@,", tls=True)),
    ],
)
def test_addresses(url: str, address: ClusterAddress) -> None:
    parsed = ClusterAddress.parse(url)
    assert parsed == address
    assert not parsed.password or parsed.password not in repr(parsed)


@pytest.mark.parametrize("url", ["redis://h", "redis+cluster://", "redis+cluster://h:1/0", "redis+cluster://h:0", "x"])
def test_malformed_addresses(url: str) -> None:
    with pytest.raises(ValueError, match="Redis Cluster"):
        ClusterAddress.parse(url)


async def test_commands_reach_the_owners_of_their_keys(cluster_client: ClusterRedis) -> None:
    names = [f"key-{number}" for number in range(60)]
    assert len(await primaries_of(cluster_client)) == 3
    pipeline = cluster_client.pipeline(transaction=False)
    for name in names:
        pipeline.set(name, name)
        pipeline.get(name)
    assert await pipeline.execute() == [answer for name in names for answer in (True, name.encode())]
    await cluster_client.hset("a-hash", "field", "value")
    assert await cluster_client.mget(["absent", *names, "a-hash"]) == [None, *(n.encode() for n in names), None]
    sizes = [await node.dbsize() for node in await primaries_of(cluster_client)]
    assert sum(sizes) == 61 and all(sizes)

    failing = cluster_client.pipeline(transaction=False)
    failing.get("a-hash")
    failing.get("key-1")
    wrong, right = await failing.execute(raise_on_error=False)
    assert isinstance(wrong, ResponseError) and right == b"key-1"
    with pytest.raises(ResponseError, match="same slot"):
        await cluster_client.sunion(["a", "b"])


async def test_a_transaction_runs_at_the_node_of_its_key(cluster_client: ClusterRedis) -> None:
    for name in ("a", "b", "c"):
        async with cluster_client.pipeline(transaction=True) as transaction:
            await transaction.watch(name)
            assert await transaction.get(name) is None
            transaction.multi()  # type: ignore[no-untyped-call]
            transaction.set(name, name)
            assert await transaction.execute() == [True]
        async with cluster_client.pipeline(transaction=True) as transaction:
            transaction.get(name)
            assert await transaction.execute() == [name.encode()]


async def test_a_scan_finds_every_key_of_all_nodes_or_of_one_tag(cluster_client: ClusterRedis) -> None:
    expected = {f"{{{tag}}}{number}".encode() for tag in "abc" for number in range(40)}
    for name in expected:
        await cluster_client.set(name, b"")

    async def scan(pattern: bytes | None) -> tuple[list[bytes], int]:
        found, steps, cursor = [], 0, 0
        while True:
            cursor, keys = await cluster_client.scan(cursor, match=pattern, count=7)
            found += keys
            steps += 1
            if cursor == 0:
                return found, steps

    found, _ = await scan(None)
    assert set(found) == expected
    found, steps = await scan(b"{b}*")
    assert set(found) == {name for name in expected if name.startswith(b"{b}")} and steps > 3
    assert {name async for name in cluster_client.scan_iter(match="{*}1")} == {b"{a}1", b"{b}1", b"{c}1"}


async def test_scripts_are_loaded_at_every_primary(cluster_client: ClusterRedis) -> None:
    keys = [(f"{{{tag}}}:lease", f"{{{tag}}}:fence") for tag in "abcdef"]
    assert [await run(cluster_client, ACQUIRE, pair, (1000,)) for pair in keys] == [1] * 6
    nodes = await primaries_of(cluster_client)
    await nodes[1].script_flush()  # as after its failover
    answers = await run_many(cluster_client, ACQUIRE, [(pair, (1000,)) for pair in keys])
    assert answers == [0] * 6


async def test_messages_reach_subscribers_at_other_nodes(cluster_client: ClusterRedis) -> None:
    for _ in range(3):  # each time at another node
        async with cluster_client.pubsub() as subscription:
            await subscription.subscribe("channel")
            assert (await subscription.get_message(timeout=5.0))["type"] == "subscribe"
            await cluster_client.publish("channel", "news")
            message = await subscription.get_message(timeout=5.0)
            assert message is not None and message["data"] == b"news"


async def test_commands_follow_a_slot_while_it_moves(redis_cluster: RedisCluster, cluster_client: ClusterRedis) -> None:
    slot = slot_of("{m}1")
    for number in range(50):
        await cluster_client.set(f"{{m}}{number}", str(number))
    source = redis_cluster.owner_of(slot)
    target = next(node for node in redis_cluster.current_primaries() if node is not source)
    move = redis_cluster.move(slot, to=target)

    async def check() -> None:
        assert await cluster_client.mget([b"{m}7"]) == [b"7"]
        pipeline = cluster_client.pipeline(transaction=False)
        for number in range(50):
            pipeline.get(f"{{m}}{number}")
        assert await pipeline.execute() == [str(number).encode() for number in range(50)]

    move.begin()
    await check()
    assert move.move_keys(20) == 20
    await check()  # 20 of the keys by ASK
    # Keys at both nodes: TRYAGAIN, until the slot has moved.
    both = asyncio.create_task(cluster_client.mget([f"{{m}}{number}" for number in range(50)]))
    await asyncio.sleep(0.1)
    assert not both.done()
    await asyncio.to_thread(move.finish)
    assert await both == [str(number).encode() for number in range(50)]
    await check()  # by MOVED
    assert redis_cluster.owner_of(slot) is target


async def test_a_lost_node_costs_its_keys_only_and_its_replica_takes_over(
    redis_cluster: RedisCluster, cluster_client: ClusterRedis
) -> None:
    slot = slot_of("k")
    lost = redis_cluster.owner_of(slot)
    other = next(name for name in "abcdefgh" if redis_cluster.owner_of(slot_of(name)) is not lost)
    await cluster_client.set("k", "v")
    assert await (await cluster_client.owner_of("k")).wait(1, 5000) == 1
    before = await run_ids(cluster_client)
    lease, lost_lease = (
        Lease(cluster_client, key=f"{{{tag}}}l", fence_key=f"{{{tag}}}f", life_ms=60_000) for tag in (other, "k")
    )
    assert await lease.acquire() and await lost_lease.acquire()
    lost.kill()
    try:
        with pytest.raises(RedisError):
            await cluster_client.get("k")
        assert await cluster_client.set(other, "v")
        answers = await cluster_client.execute_many([(("GET", "k"), {}), (("GET", other), {})])
        assert isinstance(answers[0], RedisError) and answers[1] == b"v"

        async def taken_over() -> bool:
            try:
                return bool(await cluster_client.get("k") == b"v")
            except RedisError:
                return False

        async with asyncio.timeout(60):
            while not await taken_over():  # noqa: ASYNC110 - another process changes
                await asyncio.sleep(0.1)
        assert await run_ids(cluster_client) != before
    finally:
        lost.start()
    await asyncio.to_thread(redis_cluster.await_healthy)
    await lease.release()
    await lost_lease.release()


async def test_no_node_answers() -> None:
    client = redis_client("redis+cluster://127.0.0.1:1,127.0.0.1:2")
    with pytest.raises(redis.ConnectionError, match=r"no node of the cluster answers: 127.0.0.1:2 .*127.0.0.1:1 "):
        await client.get("k")
    await client.aclose()
