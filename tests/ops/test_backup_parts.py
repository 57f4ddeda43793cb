"""The parts of a backup on real servers: Redis as it was at the point, PostgreSQL recovered to it, the freeze."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import redis
from redis.asyncio import Redis

from devstack.servers import PostgresServer, RedisServer
from domain.topology import Topology, lane_fence_key, lane_lease_key, worker_fence_key, worker_lease_key
from ops.backup import freeze, manifest
from ops.backup.chain import chain_of, find
from ops.backup.create import POSTGRES, Creation
from ops.backup.errors import BackupError
from ops.backup.freeze import Frozen
from ops.backup.manifest import Manifest
from ops.backup.postgres_copy import PostgresCopy, Server, servers_of
from ops.backup.postgres_tools import Tools
from ops.backup.redis_copy import RedisCopy
from ops.backup.restore import lay_postgres, lay_redis, restore
from ops.resharding.catalogue import LOCK_ID as MOVE_LOCK_ID
from runtime.process.settings import load_settings
from runtime.redis.client import redis_client
from runtime.redis.leases import Lease
from tests.fixtures.fix_databases import Databases


def test_redis_is_copied_as_it_was_when_it_forked(own_redis: RedisServer, tmp_path: Path) -> None:
    """What is written between the point and the end of the copy is not in it."""
    with redis.Redis.from_url(own_redis.url) as client:
        client.set("before", "1")
        with RedisCopy(own_redis.url) as copy:
            copy.begin()
            client.set("after", "1")
            copy.save(tmp_path / "copy.rdb")
    lay_redis(tmp_path / "copy.rdb", tmp_path / "restored")
    restored = RedisServer(tmp_path / "restored")
    restored.start()
    try:
        with redis.Redis.from_url(restored.url) as client:
            assert client.keys() == [b"before"]
            client.set("new", "1")
        restored.stop()
        restored.start()
        with redis.Redis.from_url(restored.url) as client:
            assert sorted(client.keys()) == [b"before", b"new"], "the restored file goes on"
    finally:
        restored.stop()


def test_a_copy_that_redis_does_not_give_is_an_error(own_redis: RedisServer) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        client.acl_setuser("weak", enabled=True, passwords=["+secret"], commands=["+ping"], keys=["*"])
    weak = own_redis.url.replace("redis://", "redis://weak:secret@")
    with RedisCopy(weak) as copy, pytest.raises(BackupError, match="Redis does not give a copy"):
        copy.begin()


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[PostgresServer]:
    """A PostgreSQL of the test's own: a backup copies whole servers."""
    server = PostgresServer(tmp_path / "primary")
    server.start()
    try:
        yield server
    finally:
        server.destroy()


def _note(server: PostgresServer, word: str) -> None:
    with psycopg.connect(server.dsn(), autocommit=True, connect_timeout=10) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS notes (word text)")
        connection.execute("INSERT INTO notes VALUES (%s)", (word,))


def _copy(server: PostgresServer, root: Path, name: str, *, since: str | None, meanwhile: str) -> None:
    folder = root / name
    (folder / POSTGRES).mkdir(parents=True)
    with PostgresCopy(
        Server("catalogue", server.dsn(), ("catalogue",)), folder / POSTGRES / "catalogue", backup_id=name,
        tools=Tools.find(None),
    ) as copy:  # fmt: skip
        copy.files(since=None if since is None else root / since / POSTGRES / "catalogue")
        _note(server, meanwhile)
        copy.mark()
        _note(server, f"after {name}")
        copy.log()
        facts = copy.facts
    document = Manifest(name, "2026-01-01T00:00:00+00:00", "x", since, {}, {"catalogue": facts}, manifest.sums(folder))
    document.write(folder)


def test_databases_are_restored_to_the_point(primary: PostgresServer, tmp_path: Path) -> None:
    """A complete copy and a difference. Both recover to their points, and nothing is left on the server."""
    root = tmp_path / "backups"
    _note(primary, "before")
    _copy(primary, root, "one", since=None, meanwhile="while one was copied")
    _copy(primary, root, "two", since="one", meanwhile="while two was copied")
    with psycopg.connect(primary.dsn(), connect_timeout=10) as connection:
        assert connection.execute("SELECT count(*) FROM pg_replication_slots").fetchone() == (0,)
    assert find(root, "latest") == root / "two"

    lay_postgres(chain_of(root, root / "two"), "catalogue", tmp_path / "restored" / "data", Tools.find(None))
    restored = PostgresServer(tmp_path / "restored")
    shutil.copy(tmp_path / "primary" / "password", restored.folder / "password")
    restored.start()
    try:
        with psycopg.connect(restored.dsn(), connect_timeout=10) as connection:
            words = [word for (word,) in connection.execute("SELECT word FROM notes").fetchall()]
            recovering = connection.execute("SELECT pg_is_in_recovery()").fetchone()
        assert words == ["before", "while one was copied", "after one", "while two was copied"]
        assert recovering is not None and not recovering[0]
        assert "restore_command" not in (restored.data / "postgresql.auto.conf").read_text()
        assert not (restored.data / "flashsale_wal").exists()
    finally:
        restored.destroy()

    (root / "two" / POSTGRES / "catalogue" / "wal" / "stray").touch()
    into = tmp_path / "into"
    with pytest.raises(BackupError, match="wal/stray: not part of the backup"):
        restore(root, root / "two", into, tools=Tools.find(None), say=lambda _: None)
    assert not into.exists()
    (root / "one" / manifest.FILE).unlink()
    with pytest.raises(BackupError, match="one: no complete backup"):
        chain_of(root, root / "two")
    shutil.rmtree(root / "one")
    with pytest.raises(BackupError, match="rests on one, which is not in"):
        chain_of(root, root / "two")


def test_servers_are_copied_once_however_many_databases_they_have() -> None:
    dsns = [
        ("catalogue", "postgresql://u@a:1/c"),
        ("shard_0", "postgresql://u@b/s"),
        ("shard_1", "postgresql://u@a:1/t"),
    ]
    assert [(server.name, server.databases) for server in servers_of(dsns)] == [
        ("catalogue", ("catalogue", "shard_1")),
        ("shard_0", ("shard_0",)),
    ]


async def test_a_freeze_takes_every_lease_and_gives_it_back(own_redis: RedisServer) -> None:
    """The holder learns it with its next renewal; a role that appears meanwhile is found by the next look."""
    redis_ = redis_client(own_redis.url)
    cluster = Topology(lanes=2)
    relay = Lease(redis_, key=lane_lease_key(0), fence_key=lane_fence_key(0), life_ms=600)
    worker = Lease(redis_, key=worker_lease_key("expiry"), fence_key=worker_fence_key("expiry"), life_ms=600)
    try:
        assert await relay.acquire()
        frozen = Frozen()
        assert await frozen.seize_new(redis_, cluster, life_ms=600) == 2
        async with asyncio.timeout(20):
            await relay.lost.wait()
        assert not await relay.acquire()
        assert await worker.acquire()
        assert await frozen.seize_new(redis_, cluster, life_ms=600) == 1
        assert await frozen.seize_new(redis_, cluster, life_ms=600) == 0
        frozen.require_held()
        await redis_.delete(lane_lease_key(1))
        async with asyncio.timeout(20):
            while True:
                try:
                    frozen.require_held()
                except BackupError:
                    break
                await asyncio.sleep(0.02)
        await frozen.release()
        assert await relay.acquire()
    finally:
        await relay.release()
        await redis_.aclose()


async def test_orders_that_are_not_stored_in_time_end_the_freeze(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Queue:
        async def barrier(self, queue: str, *, wait_s: float) -> bool:
            assert wait_s >= 0
            return queue != "orders.shard.1"

    monkeypatch.setattr(freeze, "SETTLE_S", 0.0)
    redis_: Redis = redis_client(own_redis.url)
    try:
        with pytest.raises(BackupError, match=r"orders in orders\.shard\.1 were not stored"):
            async with freeze.frozen(redis_, Queue(), Topology(lanes=1), lease_ms=500):  # type: ignore[arg-type]
                raise AssertionError("entered")
        assert await redis_.exists(lane_lease_key(0)) == 0
    finally:
        await redis_.aclose()


def test_a_folder_without_a_backup_is_named(tmp_path: Path) -> None:
    (tmp_path / "20260101T000000Z-00000000.partial").mkdir()
    with pytest.raises(BackupError, match="no complete backup"):
        find(tmp_path, "latest")
    with pytest.raises(BackupError, match="no backup"):
        find(tmp_path, "../elsewhere")
    (tmp_path / manifest.FILE).write_text("{}")
    with pytest.raises(BackupError, match="made by another version"):
        Manifest.read(tmp_path)


def test_what_has_no_one_point_is_refused(databases: Databases, tmp_path: Path) -> None:
    """The nodes of a cluster, and shards between which buckets move. Nothing is left behind."""

    def refused(**environ: str) -> str:
        settings = load_settings(databases.environ | environ)
        creation = Creation(settings, tmp_path, tools=Tools.find(None), say=lambda _: None, full=True, keys={})
        with pytest.raises(BackupError) as error:
            asyncio.run(creation.run())
        return str(error.value)

    assert "Redis Cluster" in refused(FLASHSALE_REDIS_URL="redis+cluster://127.0.0.1:1,127.0.0.1:2")
    group = "INSERT INTO bucket_group (buckets, source, target, step, token) VALUES ('{1}', 0, 1, 'copying', %s)"
    with psycopg.connect(databases.catalogue_dsn, autocommit=True) as catalogue:
        catalogue.execute(group, (uuid4(),))
        try:
            assert "buckets move" in refused(FLASHSALE_REDIS_URL="redis://127.0.0.1:1")
        finally:
            catalogue.execute("DELETE FROM bucket_group")
        catalogue.execute("SELECT pg_advisory_lock(%s)", (MOVE_LOCK_ID,))
        assert "buckets move" in refused(FLASHSALE_REDIS_URL="redis://127.0.0.1:1")
    assert not any(tmp_path.iterdir())


def test_nothing_is_restored_over_data(tmp_path: Path) -> None:
    """A folder with anything in it may be a running stack's."""
    (tmp_path / "file").touch()
    with pytest.raises(BackupError, match="is not empty"):
        restore(tmp_path, tmp_path / "x", tmp_path, tools=Tools.find(None), say=lambda _: None)
