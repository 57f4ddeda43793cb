"""Reads of accounts from the cache and from replicas, also while one of them is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg
import pytest
import redis
from prometheus_client import CollectorRegistry
from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from backoffice.caching.cache import Bounds
from backoffice.caching.caches import Caches
from backoffice.stores import Stores
from backoffice.users.model import USER_CODEC, Account, Change, User
from devstack.servers import RedisServer
from domain import ids, topology
from runtime.postgres.databases import Database
from runtime.postgres.positions import KEPT_MS
from runtime.process.settings import load_settings
from runtime.process.supervision import TaskSupervisor
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_replica import Replication
from tests.fixtures.fix_users import HASH, Accounts

WAIT_S_MAX = 20.0


@asynccontextmanager
async def process(databases: Databases, cache: RedisServer, **environ: str) -> AsyncIterator[Accounts]:
    """The accounts of another process of the backoffice."""
    settings = load_settings(
        {**databases.environ, "FLASHSALE_REDIS_URL": cache.url, "FLASHSALE_CACHE_URL": cache.url, **environ}
    )
    stores, caches = Stores.from_settings(settings), Caches(settings.cache_url, CollectorRegistry())
    users = caches.add("user", USER_CODEC, Bounds.from_settings(settings))
    background = TaskSupervisor()
    async with stores.opened(background), caches.running(background):
        await _until(lambda: caches.follows)
        yield Accounts(stores, databases, users)


async def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.fixture
async def pair(databases: Databases, own_redis: RedisServer) -> AsyncIterator[tuple[Accounts, Accounts]]:
    """Two processes on one cache."""
    async with AsyncExitStack() as stack:
        yield (
            await stack.enter_async_context(process(databases, own_redis)),
            await stack.enter_async_context(process(databases, own_redis)),
        )


def behind_the_back(accounts: Accounts, user: User, name: str) -> None:
    """A change without a message to caches: a reader that sees it has read the database."""
    accounts.rows("UPDATE users SET name = %s WHERE id = %s RETURNING 1", name, user.id)


async def name_of(accounts: Accounts, user: User) -> str | None:
    found = await accounts.users.get(user.id)
    return None if found is None else found.name


async def test_reads_are_cached_and_changes_are_heard(pair: tuple[Accounts, Accounts], own_redis: RedisServer) -> None:
    one, other = pair
    user = await one.make()
    assert await one.users.get(user.id) == await other.users.get(user.id) == user
    behind_the_back(one, user, "unheard")
    assert (await name_of(one, user), await name_of(other, user)) == ("Ada", "Ada")
    changed = await one.change(user, email="new@shop.example")
    assert changed is not None and changed.name == "unheard"
    assert await one.users.get(user.id) == changed
    # The other process receives the message.
    deadline = time.monotonic() + WAIT_S_MAX
    while await other.users.get(user.id) != changed:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    with redis.Redis(port=own_redis.port) as client:
        content = client.get(topology.cache_key("user", str(user.id)))
    assert isinstance(content, bytes) and b"new@shop.example" in content
    assert b"argon2" not in content and b"password" not in content


async def test_no_hash_gets_into_a_cache(accounts: Accounts) -> None:
    user = await accounts.make()
    found = await accounts.users.find("ada@shop.example")
    assert isinstance(found, Account) and found.password_hash == HASH
    with pytest.raises(AssertionError, match="hash"):
        USER_CODEC.encode(found)
    assert USER_CODEC.decode(USER_CODEC.encode(user)) == user
    assert HASH not in repr(found) and "ada" not in repr(found)


async def test_absent_accounts_are_cached_too(pair: tuple[Accounts, Accounts], own_redis: RedisServer) -> None:
    one, _ = pair
    nobody = ids.new_uuid7()
    assert await one.users.get(nobody) is None
    dsn = one.databases.shard_dsns[one.stores.topology.shard_of_user(nobody)]
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.cursor(row_factory=class_row(User))
        made = cursor.execute(
            "INSERT INTO users (id, bucket, email, email_folded, name, password_hash, role) "
            "VALUES (%s, 1, 'a@b.example', 'a@b.example', 'A', 'x', 'buyer') "
            "RETURNING id, email, name, role, version, created_at, false AS email_verified",
            (nobody,),
        ).fetchone()
    assert await one.users.get(nobody) is None
    with redis.Redis(port=own_redis.port) as client:
        assert 0 < client.pttl(topology.cache_key("user", str(nobody))) <= 12_000
    await one.users.forget(nobody)
    assert await one.users.get(nobody) == made


async def test_many_readers_of_one_account_load_it_once(pair: tuple[Accounts, Accounts]) -> None:
    one, _ = pair
    user = await one.make()
    loads = 0
    shard = one.stores.shard_of_user(user.id)
    read = type(shard).read

    async def counted(*arguments: object, **named: object) -> object:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.05)
        return await read(*arguments, **named)  # type: ignore[arg-type]

    type(shard).read = counted  # type: ignore[assignment, method-assign]
    try:
        found = await asyncio.gather(*(one.users.get(user.id) for _ in range(50)))
    finally:
        type(shard).read = read  # type: ignore[method-assign]
    assert found == [user] * 50
    assert loads == 1


async def test_an_erased_account_is_gone_from_caches(pair: tuple[Accounts, Accounts], own_redis: RedisServer) -> None:
    one, other = pair
    user = await one.make("ada.lovelace@shop.example", name="Ada Lovelace")
    assert await one.users.get(user.id) == await other.users.get(user.id) == user
    assert await one.erasures.erase(user, by=user.id)
    assert await one.users.get(user.id) is None
    deadline = time.monotonic() + WAIT_S_MAX
    while await other.users.get(user.id) is not None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    with redis.Redis(port=own_redis.port) as client:
        dump = [(key, client.dump(key)) for key in client.scan_iter()]
    assert not any(b"ovelace" in (value or b"") or b"ovelace" in key for key, value in dump)


async def test_answers_are_right_without_the_cache_redis(
    pair: tuple[Accounts, Accounts], own_redis: RedisServer
) -> None:
    one, _ = pair
    user = await one.make()
    assert await one.users.get(user.id) == user
    own_redis.stop()
    try:
        changed = await one.change(user, name="While it was away")
        assert changed is not None
        assert await one.users.get(user.id) == changed
        fresh = await one.make("other@shop.example")
        assert await one.users.get(fresh.id) == fresh
        assert await one.erasures.erase(fresh, by=fresh.id)
        assert await one.users.get(fresh.id) is None
    finally:
        own_redis.start()
    with redis.Redis(port=own_redis.port) as client:
        client.flushall()
    assert await one.users.get(user.id) == changed
    again = await one.change(changed, name="Back")
    assert again is not None
    assert await one.users.get(user.id) == again


@asynccontextmanager
async def process_with_replicas(
    databases: Databases, replication: Replication, own_redis: RedisServer
) -> AsyncIterator[Accounts]:
    """A process that may read replicas: its cache Redis has recorded positions for long enough."""
    replicas = ",".join(replication.dsn_of_replica(dsn) for dsn in databases.shard_dsns)
    replication.catch_up()
    with redis.Redis(port=own_redis.port) as client:
        client.set(topology.POSITIONS_SINCE_KEY, int(time.time() * 1000) - KEPT_MS - 1000)
    environ = {"FLASHSALE_SHARD_REPLICA_DSNS": replicas, "FLASHSALE_REPLICA_LAG_MS_MAX": "30000"}
    async with process(databases, own_redis, **environ) as accounts:
        yield accounts


async def caught_up(accounts: Accounts, replication: Replication) -> None:
    replication.catch_up()
    await _until(lambda: all(shard.replica and shard.replica.may_be_read for shard in accounts.stores.shards))


async def test_with_replicas_the_last_change_is_read(
    databases: Databases, replication: Replication, own_redis: RedisServer
) -> None:
    async with process_with_replicas(databases, replication, own_redis) as accounts:
        user, other = await accounts.make(), await accounts.make("other@shop.example")
        staff = ids.new_uuid7()
        await caught_up(accounts, replication)

        async def listed(reader: User | None = None) -> set[str]:
            by = staff if reader is None else reader.id
            return {u.name for u in await accounts.users.page(role=None, before=None, limit=9, reader=by)}

        assert await listed() == {"Ada"}
        with replication.paused():
            assert await accounts.users.get(user.id) == user  # cached, perhaps from the replica
            changed = await accounts.users.change(user, Change(name="Changed"), by=other.id)
            assert changed is not None
            # By id for every reader, also without a cached value; in lists for the caller that made the change.
            assert await accounts.users.get(user.id) == changed
            await accounts.users.forget(user.id)
            assert await accounts.users.get(user.id) == changed
            assert await listed(other) == await listed(user) == {"Ada", "Changed"}
            assert await listed() == {"Ada"}  # of the replicas
            assert await accounts.erasures.erase(changed, by=other.id)
            assert await accounts.users.get(user.id) is None
            assert await listed(other) == {"Ada"}
            assert await listed() == {"Ada"}
            made = await accounts.make("late@shop.example", name="Late")
            assert await accounts.users.get(made.id) == made
            assert "Late" in await listed(made) and "Late" not in await listed()
        deadline = time.monotonic() + WAIT_S_MAX
        while "Late" not in await listed():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def test_with_replicas_a_change_with_unconfirmed_commit_is_read(
    databases: Databases, replication: Replication, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with process_with_replicas(databases, replication, own_redis) as accounts:
        user = await accounts.make()
        await caught_up(accounts, replication)
        connection_of = Database.connection

        @asynccontextmanager
        async def connection_that_breaks(shard: Database) -> AsyncIterator[AsyncConnection[TupleRow]]:
            async with connection_of(shard) as connection:
                yield connection
            raise psycopg.OperationalError("committed, and the reply is lost")

        with replication.paused():
            with monkeypatch.context() as broken:
                broken.setattr(Database, "connection", connection_that_breaks)
                with pytest.raises(psycopg.OperationalError, match="the reply is lost"):
                    await accounts.change(user, name="Changed")
            assert await name_of(accounts, user) == "Changed"


def test_settings_name_a_replica_for_each_shard_or_none(databases: Databases) -> None:
    with pytest.raises(ValueError, match="REPLICA_DSNS names 3 of 4"):
        Stores.from_settings(
            load_settings({**databases.environ, "FLASHSALE_SHARD_REPLICA_DSNS": ",".join(databases.shard_dsns[:3])})
        )
