"""Start, readiness and the checked promises: each wrong setting or server is reported by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import redis

from devstack.servers import RedisServer
from domain import topology
from domain.topology import Topology
from tests.fixtures.fix_edge import ROOT, Buyers, EdgeProcess, Publisher

pytestmark = pytest.mark.doors("granian")  # not a matter of the door

StartEdge = Callable[..., EdgeProcess]
ONE = {"items": [{"sku": "SKU-1", "quantity": 1}]}


def refused_start(edge: EdgeProcess) -> str:
    """Standard error of an edge that does not start: one line without a traceback."""
    assert edge.process is not None
    assert edge.process.wait(30) == 2
    edge.process = None
    text = edge.log_text
    assert text.startswith("edge: ") and text.count("\n") == 1, text
    return text


def test_bad_settings_are_named(own_edge: StartEdge, tmp_path: Path) -> None:
    text = refused_start(own_edge(wait=False, edge_workers="many", durability="perhaps", no_such="1"))
    assert all(f"FLASHSALE_{name}" in text for name in ("EDGE_WORKERS", "DURABILITY", "NO_SUCH"))
    text = refused_start(own_edge(wait=False, shard_dsns="postgresql://secret@x/y"))
    assert "FLASHSALE_SHARD_DSNS: has 1 entries" in text and "secret" not in text
    text = refused_start(own_edge(wait=False, redis_url="redis+cluster://u:secret@host:0"))
    assert "FLASHSALE_REDIS_URL: " in text and "not a node of a Redis Cluster" in text and "secret" not in text
    text = refused_start(own_edge(wait=False, token_keys_file=str(tmp_path / "none.json")))
    assert "none.json" in text
    broken = tmp_path / "broken.json"
    broken.write_text('{"active": "a", "keys": {"a": "c2hvcnQ"}}')
    text = refused_start(own_edge(wait=False, token_keys_file=str(broken)))
    assert "broken.json" in text and "c2hvcnQ" not in text


def test_a_busy_port_is_named(own_edge: StartEdge, edge_redis: RedisServer, tmp_path: Path) -> None:
    """Also when an edge has the port, whose workers listen with SO_REUSEPORT: the kernel would share the port."""
    first = own_edge(redis_url=edge_redis.url)
    for number, ports in enumerate(({"granian_port": first.granian_port}, {"direct_port": first.direct_port})):
        second = EdgeProcess(first.settings, tmp_path / f"second-{number}.log", **ports)
        second.spawn()
        assert f"cannot listen on 127.0.0.1:{next(iter(ports.values()))}" in refused_start(second)
    assert first.wait_ready().status_code == 200


def test_ready_as_soon_as_redis_is_there(own_edge: StartEdge, tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "late-redis")
    edge = own_edge(wait=False, redis_url=server.url)
    answer = edge.wait_ready(status=503)
    document = answer.json()
    assert document["code"] == "dependency_unavailable" and document["durability"] == "fsync"
    assert document["missing"] == ["redis", "sales", "sessions"]
    assert answer.headers["retry-after"] == "1"
    assert httpx.get(f"{edge.url}/livez").status_code == 200
    server.start()
    try:
        ready = edge.wait_ready()
        direct = f"http://127.0.0.1:{edge.direct_port}"
        expected = {"status": "ready", "durability": "fsync", "missing": [], "edge_direct_url": direct}
        assert ready.json() == expected
        assert httpx.head(f"{edge.url}/readyz").status_code == 200
    finally:
        server.stop()


def test_a_redis_that_does_not_sync_breaks_the_promise(
    own_edge: StartEdge, own_redis: RedisServer, buyers: Buyers
) -> None:
    with redis.Redis(port=own_redis.port) as client:
        client.config_set("appendfsync", "everysec")
        sale = Publisher(client).publish()
        edge = own_edge(wait=False, redis_url=own_redis.url)
        document = wait_for_missing(edge, ["durability"])
        assert "appendfsync everysec" in document["detail"]
        # A 202 would promise too much.
        answer = httpx.post(f"{edge.url}/v1/sales/{sale.sale_id}/orders", headers=buyers.headers(), json=ONE)
        assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")
        assert edge.stop() == 0
        # The level `memory` promises nothing, so this server suffices.
        memory = own_edge(redis_url=own_redis.url, durability="memory")
        assert memory.wait_ready().json()["durability"] == "memory"
        answer = httpx.post(f"{memory.url}/v1/sales/{sale.sale_id}/orders", headers=buyers.headers(), json=ONE)
        assert answer.status_code == 202


def test_eviction_and_other_cluster_settings(own_edge: StartEdge, own_redis: RedisServer) -> None:
    with redis.Redis(port=own_redis.port) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.set(topology.FINGERPRINT_KEY, Topology(lanes=7).fingerprint)
        edge = own_edge(wait=False, redis_url=own_redis.url)
        document = wait_for_missing(edge, ["cluster_settings", "eviction"])
        assert "allkeys-lru" in document["detail"] and "FLASHSALE_LANES" in document["detail"]


def test_full_memory_refuses_orders_until_there_is_room(
    own_edge: StartEdge, own_redis: RedisServer, buyers: Buyers
) -> None:
    with redis.Redis(port=own_redis.port) as client:
        sale = Publisher(client).publish(stock=10_000)
        edge = own_edge(redis_url=own_redis.url)
        url = f"{edge.url}/v1/sales/{sale.sale_id}/orders"

        def status_becomes(status: int) -> httpx.Response:
            deadline = time.monotonic() + 15
            while (answer := httpx.post(url, headers=buyers.headers(), json=ONE)).status_code != status:
                assert time.monotonic() < deadline, answer.text
                time.sleep(0.02)
            return answer

        status_becomes(202)
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory", int(used * 1.1))
        answer = status_becomes(503)
        assert answer.json()["code"] == "overloaded" and answer.headers["retry-after"] == "1"
        client.config_set("maxmemory", used * 100)
        status_becomes(202)


def test_a_full_stream_refuses_orders(own_edge: StartEdge, own_redis: RedisServer, buyers: Buyers) -> None:
    with redis.Redis(port=own_redis.port) as client:
        sale = Publisher(client).publish(stock=10_000)
        edge = own_edge(redis_url=own_redis.url, stream_length_max="1000")
        client.eval(
            "for i = 1, 1000 do redis.call('XADD', KEYS[1], i .. '-0', 'e', 'x') end",
            *(1, topology.lane_stream_key(sale.lanes[0])),
        )
        client.hset(topology.lane_state_key(sale.lanes[0]), "seq", 1000)
        answer = httpx.post(f"{edge.url}/v1/sales/{sale.sale_id}/orders", headers=buyers.headers(), json=ONE)
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")


def test_a_killed_worker_is_replaced(own_edge: StartEdge, edge_redis: RedisServer) -> None:
    edge = own_edge(redis_url=edge_redis.url)
    assert edge.process is not None
    (worker,) = children(edge.process.pid)
    os.kill(worker, signal.SIGKILL)
    deadline = time.monotonic() + 15
    while children(edge.process.pid) in ([], [worker]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    edge.wait_ready()


def test_a_worker_that_keeps_dying_does_not_take_the_others_along(own_edge: StartEdge, edge_redis: RedisServer) -> None:
    """One of two workers is killed each time it is back, more often than Granian alone allows."""
    edge = own_edge(redis_url=edge_redis.url, edge_workers="2")
    assert edge.process is not None
    healthy, victim = children(edge.process.pid)
    deadline = time.monotonic() + 30
    for _ in range(3):
        os.kill(victim, signal.SIGKILL)
        while len(pids := set(children(edge.process.pid)) - {healthy, victim}) != 1:
            assert time.monotonic() < deadline and edge.process.poll() is None
            time.sleep(0.02)
        (victim,) = pids
    edge.wait_ready()
    assert edge.process.poll() is None and set(children(edge.process.pid)) == {healthy, victim}


def test_workers_end_with_a_killed_main_process(own_edge: StartEdge, edge_redis: RedisServer) -> None:
    edge = own_edge(redis_url=edge_redis.url)
    assert edge.process is not None
    (worker,) = children(edge.process.pid)
    edge.process.kill()
    edge.process.wait()
    # The next edge gets the port at once.
    edge.start()
    assert not Path(f"/proc/{worker}").exists() or children(edge.process.pid) != [worker]


def test_nothing_is_left_behind(
    own_edge: StartEdge, edge_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edge removes the folders of killed edges, and its own when it stops."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def folders() -> set[Path]:
        return set(tmp_path.glob("flashsale-edge-*"))

    killed = own_edge(redis_url=edge_redis.url)
    assert killed.process is not None
    left = folders()
    assert len(left) == 1
    killed.process.kill()
    killed.process.wait()
    killed.process = None
    other = own_edge(redis_url=edge_redis.url)
    assert len(folders()) == 1 and not folders() & left
    assert other.stop() == 0
    assert not folders()


def wait_for_missing(edge: EdgeProcess, missing: list[str]) -> dict[str, str]:
    """Wait for a /readyz document with exactly these missing parts."""
    deadline = time.monotonic() + 15
    while True:
        document: dict[str, str] = edge.wait_ready(status=503).json()
        if document["missing"] == missing:
            return document
        assert time.monotonic() < deadline, document
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Worker processes of an edge (without its resource tracker)."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if int(stat[1]) == pid and stat[0] != "Z" and b"spawn_main" in command:
            found.append(int(entry.name))
    return found


def test_the_limit_of_open_files_is_raised() -> None:
    """The usual soft limit of 1024 would end accepting long before `edge_connections_max`."""
    program = (
        "import resource as r; from edge.__main__ import raise_open_files as f;"
        "hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (256, min(hard, 4000)));"
        "f(1000); first = r.getrlimit(r.RLIMIT_NOFILE)[0]; f(100000); print(first, r.getrlimit(r.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1256 4000"
    assert "open_files_limited" in done.stdout + done.stderr


def test_workers_are_scheduled_in_batches(own_edge: StartEdge, edge_redis: RedisServer) -> None:
    edge = own_edge(redis_url=edge_redis.url)
    assert edge.process is not None
    (worker,) = (
        pid
        for pid in Path(f"/proc/{edge.process.pid}/task/{edge.process.pid}/children").read_text().split()
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    # A thread of the kernel serves io_uring.
    threads = [int(path.name) for path in Path(f"/proc/{worker}/task").iterdir() if not is_of_kernel(path)]
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_BATCH}


def is_of_kernel(thread: Path) -> bool:
    return (thread / "comm").read_text().startswith("iou-")
