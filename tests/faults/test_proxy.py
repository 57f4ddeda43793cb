"""The fault proxy in front of a real Redis: it forwards data unchanged, and each harm happens once and is counted."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import psycopg
import pytest
import redis

from devstack.servers import PostgresServer, RedisServer
from faults.postgres_faults import TO_SHARD
from faults.proxy import FaultProxy, Harm, Trap
from tests.fixtures.fix_databases import Databases

NEVER_S = 0.3


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy(redis_server.port) as running:
        yield running


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[redis.Redis]:
    with redis.Redis(port=proxy.port, socket_timeout=5, retry=None, single_connection_client=True) as connected:
        yield connected


@pytest.fixture
def direct(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=redis_server.port) as connected:
        yield connected


def test_everything_passes_unharmed(client: redis.Redis, proxy: FaultProxy) -> None:
    big = bytes(range(256)) * 8192
    client.set("faults:big", big)
    assert client.get("faults:big") == big
    assert proxy.counted["connections"] == 1
    assert proxy.counted["cut"] == 0


def test_a_cut_ends_what_is_open_and_new_connections_pass(client: redis.Redis, proxy: FaultProxy) -> None:
    client.ping()
    assert proxy.cut() == 1
    with pytest.raises(redis.ConnectionError):
        client.ping()
    client.ping()


def test_refused_while_told_to(proxy: FaultProxy) -> None:
    proxy.refuse(refusing=True)
    with redis.Redis(port=proxy.port, socket_timeout=1, retry=None) as client, pytest.raises(redis.ConnectionError):
        client.ping()
    assert proxy.counted["refused"] >= 1
    proxy.refuse(refusing=False)
    with redis.Redis(port=proxy.port) as client:
        client.ping()


def test_stalled_traffic_goes_on_where_it_was(proxy: FaultProxy) -> None:
    with redis.Redis(port=proxy.port, socket_timeout=NEVER_S, retry=None) as client:
        client.ping()
        proxy.stall(stalled=True)
        with pytest.raises(redis.TimeoutError):
            client.incr("faults:stalled")
        proxy.clear()
        client.ping()
    assert proxy.counted["stalled"] >= 1


def test_slow_traffic_is_slow(client: redis.Redis, proxy: FaultProxy) -> None:
    client.ping()
    proxy.slow(0.05)
    before = time.monotonic()
    client.ping()
    assert time.monotonic() - before >= 0.1  # delays of the command and of its answer
    assert proxy.counted["slowed"] == 2


def test_slow_traffic_keeps_its_order_also_when_it_gets_faster(proxy: FaultProxy, direct: redis.Redis) -> None:
    direct.delete("faults:order")
    with socket.create_connection(("127.0.0.1", proxy.port)) as raw:
        for number in range(20):
            proxy.slow((0.05, 0.02, 0.0)[number % 3])
            raw.sendall(b"INCR faults:order\r\nECHO %d\r\n" % number)
            time.sleep(0.003)  # makes it a separate write
        answers = b"".join(b":%d\r\n$%d\r\n%d\r\n" % (n + 1, len(str(n)), n) for n in range(20))
        raw.settimeout(10)
        got = b""
        while len(got) < len(answers):
            got += raw.recv(4096)
    assert got == answers


@pytest.mark.parametrize(("harm", "executed"), [(Harm.BEFORE, 0), (Harm.TORN, 0), (Harm.AFTER, 1)])
def test_a_trap_harms_the_write_it_waits_for(
    proxy: FaultProxy, client: redis.Redis, direct: redis.Redis, harm: Harm, executed: int
) -> None:
    direct.delete("faults:trap")
    acted: list[str] = []
    trap = Trap(harm, (b"INCR", b"faults:trap"), skip=1, action=lambda: acted.append("acted"))
    proxy.set_trap(trap)
    client.incr("faults:trap")
    client.get("faults:trap")
    assert not trap.done.is_set()
    with pytest.raises(redis.ConnectionError):
        client.incr("faults:trap")
    assert trap.done.wait(5)
    assert acted == ["acted"]
    assert proxy.counted[harm.value] == 1
    assert int(direct.get("faults:trap") or 0) == 1 + executed  # type: ignore[arg-type]
    client.incr("faults:trap")  # sprung once, and harmless afterwards


def test_a_trap_looks_only_at_its_connections(proxy: FaultProxy) -> None:
    trap = proxy.set_trap(Trap(Harm.BEFORE, (b"PING",), greeting=b"marked"))
    with redis.Redis(port=proxy.port, client_name="other", retry=None) as client:
        client.ping()
    assert not trap.done.is_set()
    with (
        redis.Redis(port=proxy.port, client_name="marked", retry=None) as client,
        pytest.raises(redis.ConnectionError),
    ):
        client.ping()
    assert trap.done.is_set()


def test_a_trap_for_shards_lets_the_catalogue_pass(postgres_server: PostgresServer, migrated: Databases) -> None:
    """A statement about `shard_grant` does not mark a connection to a shard."""
    with FaultProxy(postgres_server.port) as proxy:
        trap = proxy.set_trap(Trap(Harm.BEFORE, (b"COMMIT",), TO_SHARD))

        def commit(dsn: str) -> None:
            with psycopg.connect(dsn.replace(f":{postgres_server.port}/", f":{proxy.port}/")) as connection:
                connection.execute("SELECT 1 AS shard_grant")

        commit(migrated.catalogue_dsn)
        assert trap.sprung == 0
        with pytest.raises(psycopg.OperationalError):
            commit(migrated.shard_dsns[0])
        assert trap.sprung == 1
