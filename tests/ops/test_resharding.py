"""Buckets move between real shards: nothing is lost, nothing is there twice, after a crash at any step."""

from __future__ import annotations

from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.errors import LockNotAvailable
from pydantic import SecretStr

from devstack.servers import RedisServer
from domain.orders import OrderStatus
from domain.topology import BUCKETS_KEY, Topology, bucket_of_address, bucket_of_user
from ops.resharding import procedure, tables
from ops.resharding.opening import opened_connection, opened_mover
from ops.resharding.shard import MoveError, ShardSide
from runtime.buckets import following
from runtime.buckets.gate import is_closed
from runtime.buckets.restoring import MapKeeper
from runtime.process.settings import load_settings
from tests.fixtures.fix_databases import Databases
from tests.ops.resharding import STEPS, TOPOLOGY, Crash, check_places, crash_at, everything, mover, owners
from tests.workers.making import Maker, later, stock
from tests.workers.writing import Bench, eventually, incoming

ADDRESS = "ada-{}@example.com"


@pytest.fixture(autouse=True)
def _large_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups instead of 16."""
    monkeypatch.setattr(procedure, "BUCKETS_PER_GROUP", 128)


async def _fill(bench: Bench, maker: Maker, *, users: int = 40) -> None:
    """Accounts with everything, and orders in each state, in shards 0 and 1."""
    stock(bench.databases, maker.sale_id, {"SKU-1": 200, "SKU-2": 200})
    for shard in (0, 1):
        buyers = [maker.user(shard) for _ in range(users)]
        entries = []
        for place, buyer in enumerate(buyers):
            order = maker.order(user_id=buyer, lines=[("SKU-1", 1 + place % 3), ("SKU-2", 1)])
            entries.append(maker.numbered(order))
            if place % 3:
                status = OrderStatus.PAID if place % 3 == 1 else OrderStatus.CANCELLED
                entries.append(maker.numbered(later(order, status)))
            with psycopg.connect(bench.databases.shard_dsns[shard]) as connection:
                _account(connection, buyer, place)
        await bench.store(shard).store(incoming(entries, shard=shard))
    for place in range(users):
        address = ADDRESS.format(place)
        with psycopg.connect(bench.databases.shard_dsns[TOPOLOGY.shard_of_address(address)]) as connection:
            # An earlier release wrote no bucket.
            bucket = bucket_of_address(address) if place % 2 else None
            connection.execute(
                "INSERT INTO login_index VALUES (%s, gen_random_uuid(), true, now(), %s)", (address, bucket)
            )


def _account(connection: psycopg.Connection, user_id: UUID, place: int) -> None:
    values = {"user": user_id, "bucket": bucket_of_user(user_id), "address": ADDRESS.format(place)}
    for statement in (
        "INSERT INTO users (id, bucket, email, email_folded, name, password_hash, role) "
        "VALUES (%(user)s, %(bucket)s, %(address)s, %(address)s, 'Ada', 'hash', 'buyer')",
        "INSERT INTO refresh_families (id, user_id, expires_at) VALUES (%(user)s, %(user)s, now())",
        "INSERT INTO refresh_tokens (id, family_id, secret_hash) VALUES (%(user)s, %(user)s, sha256('a'))",
        "INSERT INTO mailed_links VALUES (%(user)s, 'verify_email', %(user)s, sha256('b'), %(address)s, now())",
        "INSERT INTO session_ends VALUES (%(user)s, 1, 1000)",
        "INSERT INTO notice_preferences (user_id, language) VALUES (%(user)s, 'de')",
    ):
        connection.execute(statement, values)


async def test_buckets_of_two_shards_move_to_a_third(
    bench: Bench, maker: Maker, databases: Databases, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _fill(bench, maker)
    monkeypatch.setattr(tables, "INDEXED_BYTES_MIN", 0)  # as if all tables were large
    async with mover(databases, redis_server.url):
        pass  # fills the buckets of addresses in
    before = await everything(databases)
    buckets = range(128, 384)

    async with mover(databases, redis_server.url) as moving:
        assert await moving.move(buckets, 2) == len(buckets)
        assert await moving.move(buckets, 2) == 0  # again: nothing is left to do

    assert await everything(databases) == before
    assert {owner for bucket, owner in owners(databases).items() if bucket in buckets} == {2}
    check_places(databases)
    with psycopg.connect(databases.shard_dsns[2]) as connection:
        # Rows that move are no events, and their versions stay.
        assert connection.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
        assert connection.execute("SELECT max(revision) FROM users").fetchone() == (2,)


async def test_each_run_goes_on_where_a_crash_ended_the_one_before(
    bench: Bench, maker: Maker, databases: Databases, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash after each step, one after the other, of which each run undoes or finishes the one before."""
    monkeypatch.setattr(procedure, "BUCKETS_PER_GROUP", 32)
    monkeypatch.setattr(procedure, "BETWEEN_GROUPS_S", 0)
    await _fill(bench, maker, users=30)
    async with mover(databases, redis_server.url):
        pass
    before = await everything(databases)
    buckets = range(512)
    for step in STEPS:
        with pytest.raises(Crash):
            async with mover(databases, redis_server.url, crash_at(step)) as moving:
                await moving.move(buckets, 3)
        _nothing_is_missing(databases, before["orders"][0])

    async with mover(databases, redis_server.url) as moving:
        await moving.move(buckets, 3)

    assert await everything(databases) == before
    assert {owner for bucket, owner in owners(databases).items() if bucket in buckets} == {3}
    check_places(databases)


def _nothing_is_missing(databases: Databases, orders: int) -> None:
    """Every order is in the shard that the catalogue names, at every moment."""
    owner, found = owners(databases), 0
    for shard, dsn in enumerate(databases.shard_dsns):
        mine = [bucket for bucket in range(1024) if owner[bucket] == shard]
        with psycopg.connect(dsn) as connection:
            row = connection.execute("SELECT count(*) FROM orders WHERE bucket = ANY(%s)", (mine,)).fetchone()
        assert row is not None
        found += row[0]
    assert found == orders


def test_the_databases_compute_buckets_as_the_processes_do(databases: Databases, maker: Maker) -> None:
    users = [maker.user(shard) for shard in range(4) for _ in range(50)]
    orders = [maker.order(user_id=user).order_id for user in users]
    with psycopg.connect(databases.shard_dsns[0]) as connection:
        found = connection.execute(
            "SELECT bucket_of_user(u), bucket_of_order(o) FROM unnest(%s::uuid[], %s::uuid[]) AS w (u, o)",
            (users, orders),
        ).fetchall()
    assert found == [(bucket_of_user(user), bucket_of_user(user)) for user in users]


def test_every_table_of_a_shard_has_a_decision(databases: Databases) -> None:
    stays = {"outbox"}
    of_each_shard = {"quota", "sale_epochs", "closed_buckets", "schema_migrations"}
    with psycopg.connect(databases.shard_dsns[0]) as connection:
        found = connection.execute(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
        ).fetchall()
    moved = {table.name for table in tables.MOVED}
    assert {name for (name,) in found} == moved | stays | of_each_shard


async def test_an_outbox_that_is_not_published_stops_the_move_and_freezes_nothing(
    bench: Bench, maker: Maker, databases: Databases, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _fill(bench, maker, users=4)
    monkeypatch.setattr(procedure, "DRAINED_S_MAX", 0.1)
    settings = load_settings({**databases.environ, "FLASHSALE_REDIS_URL": redis_server.url})
    with pytest.raises(MoveError, match="outbox of shard 0 is not published"):
        async with opened_mover(settings, lambda _: None) as moving:
            await moving.move([0], 3)
    with psycopg.connect(databases.shard_dsns[0]) as connection:
        assert connection.execute("SELECT count(*) FROM closed_buckets WHERE state <> 'elsewhere'").fetchone() == (0,)


async def test_there_is_one_mover_at_a_time(databases: Databases, redis_server: RedisServer) -> None:
    async with mover(databases, redis_server.url):
        with pytest.raises(MoveError, match="another process"):
            async with mover(databases, redis_server.url):
                pass


async def test_a_writer_with_an_old_map_forwards_and_waits(
    bench: Bench, maker: Maker, databases: Databases, redis_server: RedisServer
) -> None:
    """Entries in the former shard's queue reach the new shard, those of a frozen bucket wait and cost no attempt."""
    await _fill(bench, maker, users=4)
    moved, frozen = maker.user(0), maker.user(0)
    while bucket_of_user(frozen) == bucket_of_user(moved):
        frozen = maker.user(0)
    async with mover(databases, redis_server.url) as moving:
        await moving.move([bucket_of_user(moved)], 3)
    with psycopg.connect(databases.shard_dsns[0]) as connection:
        connection.execute("INSERT INTO closed_buckets VALUES (%s, 'frozen', 3)", (bucket_of_user(frozen),))
    orders = {user: maker.order(user_id=user, lines=[("SKU-1", 1)]) for user in (moved, frozen, maker.user(0))}
    entries = [maker.numbered(order) for order in orders.values()]

    async with bench.running(0, 3):
        await bench.publish(entries, shard=0)

        async def placed() -> bool:
            return orders[moved].order_id in _orders(databases, 3)

        await eventually(placed)
        assert orders[frozen].order_id not in _orders(databases, 0) | _orders(databases, 3)
        with psycopg.connect(databases.shard_dsns[0]) as connection:
            connection.execute("DELETE FROM closed_buckets WHERE state = 'frozen'")
        await bench.drained(0)
        await bench.drained(3)
    assert orders[frozen].order_id in _orders(databases, 0)
    assert orders[moved].order_id not in _orders(databases, 0)
    check_places(databases)


def _orders(databases: Databases, shard: int) -> set[UUID]:
    with psycopg.connect(databases.shard_dsns[shard]) as connection:
        return {order_id for (order_id,) in connection.execute("SELECT id FROM orders")}


async def test_a_statement_that_enters_no_bucket_is_refused_where_the_bucket_is_closed(
    bench: Bench, maker: Maker, databases: Databases, redis_server: RedisServer
) -> None:
    """As a process of an earlier release would write, or one that was stopped during the move."""
    await _fill(bench, maker, users=4)
    user_id = maker.user(0)
    async with mover(databases, redis_server.url) as moving:
        await moving.move([bucket_of_user(user_id)], 3)
    order_id = maker.order(user_id=user_id).order_id
    for statement, values in (
        ("INSERT INTO session_ends VALUES (%s, 1, 1000)", (user_id,)),
        (
            "INSERT INTO users (id, bucket, email, email_folded, name, password_hash, role) "
            "VALUES (%s, %s, 'e@x', 'e@x', 'Ada', 'hash', 'buyer')",
            (user_id, bucket_of_user(user_id)),
        ),
        (
            "INSERT INTO payments (event_id, order_id, user_id, sale_id, provider, reference, amount_minor, currency, "
            "state, settles) VALUES ('e', %s, %s, %s, 'simulated', 'r', 1, 'EUR', 'received', true)",
            (order_id, user_id, maker.sale_id),
        ),
    ):
        with psycopg.connect(databases.shard_dsns[0]) as connection, pytest.raises(psycopg.OperationalError) as caught:
            connection.execute(statement, values)
        assert is_closed(caught.value)
        assert caught.value.diag.message_detail == "3"
        with psycopg.connect(databases.shard_dsns[3]) as connection:
            connection.execute(statement, values)


async def test_a_writer_that_entered_a_bucket_holds_the_freeze_back(databases: Databases) -> None:
    """No write can come after the copy: the freeze waits for the transactions that entered."""
    async with await psycopg.AsyncConnection.connect(databases.shard_dsns[0]) as writer:
        assert await (await writer.execute("SELECT * FROM enter_buckets('{1,2}')")).fetchall() == []
        async with opened_connection(SecretStr(databases.shard_dsns[0])) as connection:
            shard = ShardSide(0, connection)
            with pytest.raises(LockNotAvailable):
                await shard.freeze([1], target=3, token=uuid4())
            await writer.commit()
            await shard.freeze([1], target=3, token=uuid4())
            await writer.rollback()
            assert await (await writer.execute("SELECT * FROM enter_buckets('{1,2}')")).fetchall() == [(1, "frozen", 3)]


async def test_a_lost_map_comes_back_from_the_catalogue(
    bench: Bench, databases: Databases, redis_server: RedisServer
) -> None:
    async with mover(databases, redis_server.url) as moving:
        await moving.move(range(20), 3)
    await bench.redis.delete(BUCKETS_KEY)
    keeper = MapKeeper(bench.redis, bench.catalogue)
    assert await keeper.look()
    assert not await keeper.look()
    there = Topology()
    assert await following.refresh(bench.redis, there)
    assert {there.shard_of_bucket(bucket) for bucket in range(20)} == {3}
    assert there.shard_of_bucket(20) == 0
    # A process that does not know the shard keeps its map.
    small = Topology(shards=3, first_shards=3)
    assert not await following.refresh(bench.redis, small)
    assert small.buckets.version == 0
