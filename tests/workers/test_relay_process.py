"""The relay as a process: killed at random points, it loses nothing; it stops in good order and reports its health."""

from __future__ import annotations

import random
import signal
import time

import pytest
import redis

from devstack.servers import RedisServer, free_port
from domain.topology import lane_lease_key, lane_stream_key
from tests.workers.lane_entries import TOPOLOGY, fill_lane, queued_anywhere
from tests.workers.worker_process import WAIT_S_MAX, get, stop, until, worker_process


@pytest.mark.parametrize("seed", [11])
def test_killed_at_random_points_every_entry_arrives(
    seed: int, redis_client: redis.Redis, redis_server: RedisServer
) -> None:
    print(f"seed {seed}")  # noqa: T201 - replay with it
    rng = random.Random(seed)
    settings = {
        "REDIS_URL": redis_server.url,
        "QUEUE_URL": redis_server.url,
        "LEASE_MS": "500",
        "RELAY_BATCH_MAX": "50",
    }
    written = {lane: fill_lane(redis_client, rng, lane=lane, count=3_000) for lane in range(TOPOLOGY.lanes)}

    def backlog() -> int:
        return sum(redis_client.xlen(lane_stream_key(lane)) for lane in range(TOPOLOGY.lanes))

    def top_up() -> None:
        for lane, entries in written.items():
            entries |= fill_lane(redis_client, rng, lane=lane, count=2_000, first_seq=len(entries) + 1)

    kills = 0
    while kills < 4:
        with worker_process("workers.relay", settings) as process:
            before = backlog()
            until(lambda: backlog() < before)  # noqa: B023 - called at once
            time.sleep(rng.random() * 0.1)
            process.kill()
            process.wait()
        kills += 1
        top_up()
    with worker_process("workers.relay", settings) as process:
        until(lambda: backlog() == 0)
        assert stop(process) == 0
    for lane, entries in written.items():
        assert queued_anywhere(redis_client, lane=lane) == entries
        assert redis_client.get(lane_lease_key(lane)) is None


def test_a_paused_relay_is_replaced_and_does_no_harm_when_it_wakes(
    redis_client: redis.Redis, redis_server: RedisServer
) -> None:
    rng = random.Random(4)
    settings = {"REDIS_URL": redis_server.url, "QUEUE_URL": redis_server.url, "LEASE_MS": "500"}
    stream = lane_stream_key(0)
    written = fill_lane(redis_client, rng, lane=0, count=10_000)
    with worker_process("workers.relay", settings) as zombie:
        until(lambda: redis_client.xlen(stream) < 10_000)
        zombie.send_signal(signal.SIGSTOP)
        token = redis_client.get(lane_lease_key(0))
        with worker_process("workers.relay", settings) as heir:
            written |= fill_lane(redis_client, rng, lane=0, count=100, first_seq=10_001)
            until(lambda: redis_client.xlen(stream) == 0)
            assert redis_client.get(lane_lease_key(0)) != token
            zombie.send_signal(signal.SIGCONT)
            written |= fill_lane(redis_client, rng, lane=0, count=3_000, first_seq=10_101)
            until(lambda: redis_client.xlen(stream) == 0)
            assert stop(heir) == 0
        # The one that was paused takes over again.
        written |= fill_lane(redis_client, rng, lane=0, count=100, first_seq=13_101)
        until(lambda: redis_client.xlen(stream) == 0)
        assert stop(zombie) == 0
    assert queued_anywhere(redis_client, lane=0) == written


def test_readiness_and_metrics(redis_client: redis.Redis, redis_server: RedisServer) -> None:
    port = free_port()
    written = fill_lane(redis_client, random.Random(1), lane=3, count=100)
    settings = {"REDIS_URL": redis_server.url, "QUEUE_URL": redis_server.url, "METRICS_PORT": str(port)}
    with worker_process("workers.relay", settings) as process:
        until(lambda: get(f"http://127.0.0.1:{port}/readyz")[0] == 200)
        until(lambda: redis_client.xlen(lane_stream_key(3)) == 0)
        until(lambda: 'flashsale_relay_lag_entries{lane="3"} 0.0' in get(f"http://127.0.0.1:{port}/metrics")[1])
        text = get(f"http://127.0.0.1:{port}/metrics")[1]
        assert 'flashsale_relay_lease_held{lane="0"} 1.0' in text
        assert f'flashsale_relay_trimmed_entries_total{{lane="3"}} {len(written)}.0' in text
        assert get(f"http://127.0.0.1:{port}/livez") == (200, "ok\n")
        assert stop(process) == 0


def test_another_fingerprint_is_fatal(redis_client: redis.Redis, redis_server: RedisServer) -> None:
    redis_client.set("flashsale:fingerprint", "0123456789abcdef")
    with worker_process("workers.relay", {"REDIS_URL": redis_server.url, "QUEUE_URL": redis_server.url}) as process:
        assert process.wait(WAIT_S_MAX) == 1


def test_redis_killed_and_restarted_on_the_way(own_redis: RedisServer) -> None:
    rng = random.Random(8)
    client = redis.Redis(port=own_redis.port)
    written = fill_lane(client, rng, lane=0, count=20_000)
    settings = {"REDIS_URL": own_redis.url, "QUEUE_URL": own_redis.url, "LEASE_MS": "1000"}
    with worker_process("workers.relay", settings) as process:
        until(lambda: client.xlen(lane_stream_key(0)) < 20_000)
        own_redis.kill()
        own_redis.start()
        written |= fill_lane(client, rng, lane=0, count=100, first_seq=20_001)
        until(lambda: client.xlen(lane_stream_key(0)) == 0)
        assert stop(process) == 0
    assert queued_anywhere(client, lane=0) == written
    client.close()


def test_starts_before_redis_and_stops_without_it(own_redis: RedisServer) -> None:
    own_redis.stop()
    port = free_port()
    settings = {"REDIS_URL": own_redis.url, "QUEUE_URL": own_redis.url, "METRICS_PORT": str(port)}
    with worker_process("workers.relay", settings) as process:
        until(lambda: get(f"http://127.0.0.1:{port}/readyz")[0] == 503)
        own_redis.start()
        until(lambda: get(f"http://127.0.0.1:{port}/readyz")[0] == 200)
        own_redis.stop()
        until(lambda: get(f"http://127.0.0.1:{port}/readyz")[0] == 503)
        assert stop(process) == 0
