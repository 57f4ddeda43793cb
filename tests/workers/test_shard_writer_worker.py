"""The shard writer on its queue: the results for messages, with real Redis and PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from urllib.parse import urlsplit

import psycopg
import pytest
from pydantic import SecretStr

from domain.messages import SequencedEntry, decode_orders, encode_sequenced
from domain.orders import OrderStatus, decode_entry, encode_entry, encode_value
from domain.topology import order_key, order_queue
from faults.proxy import FaultProxy
from runtime.dead_letters import PostgresDeadLetters
from runtime.postgres import pool as pools
from runtime.postgres.pool import postgres_pool
from runtime.queue import FailureKind
from tests.workers.making import Maker, later, renamed, stock
from tests.workers.writing import FAST_POLICY, Bench, event_ids, eventually, guard_of, rows, statuses
from workers.shard_writer.worker import FINAL_TTL_S


async def test_messages_are_merged_stored_and_acknowledged(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 1000})
    orders = [maker.order() for _ in range(90)]
    for start in range(0, 90, 10):
        await bench.publish(maker.numbered(order) for order in orders[start : start + 10])
    async with bench.running(0, batch_max=50):
        await bench.drained()
    assert statuses(bench.databases) == {order.order_id: (0, 1) for order in orders}
    assert guard_of(bench.databases, maker.sale_id)["quotas"] == {0: (90, 90)}


async def test_a_final_order_gets_its_ttl_again_after_a_redelivery(bench: Bench, maker: Maker) -> None:
    """The TTL is given before the acknowledgement: a crash in between brings the message again, and with it the TTL."""
    stock(bench.databases, maker.sale_id, {"SKU-1": 10})
    paid, held = maker.order(), maker.order()
    for order in (paid, held):
        await bench.redis.set(order_key(order.order_id), encode_value(order))
    entries = [maker.numbered(paid), maker.numbered(later(paid, OrderStatus.PAID)), maker.numbered(held)]
    async with bench.running(0):
        for _ in range(2):
            await bench.publish(entries)
            await bench.drained()
            assert 0 < await bench.redis.ttl(order_key(paid.order_id)) <= FINAL_TTL_S
            assert await bench.redis.ttl(order_key(held.order_id)) == -1
            await bench.redis.persist(order_key(paid.order_id))


async def test_poison_goes_to_the_dead_letters_alone(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 100})
    good = [maker.order() for _ in range(9)]
    bad = renamed(good[0], maker.order(user_id=good[0].user_id))
    entries = [maker.numbered(order) for order in (*good, bad)]
    mangled = SequencedEntry(maker.lane, maker.seq + 1, b"\x00mangled")
    async with bench.running(0):
        await bench.publish([*entries, mangled])
        await bench.drained()
    assert statuses(bench.databases).keys() == {order.order_id for order in good}
    letters, _ = await bench.letters.list(order_queue(0))
    assert sorted(decode_orders(letter.body)[0].lane_seq for letter in letters) == [
        entries[-1].lane_seq,
        mangled.lane_seq,
    ]
    for letter in letters:
        assert len(decode_orders(letter.body)) == 1
        assert letter.attempts == FAST_POLICY.attempts_max
        assert len(letter.history) == FAST_POLICY.attempts_max
    noted = rows(bench.databases.shard_dsns[0], "SELECT lane, lane_seq FROM dead_lettered ORDER BY lane_seq")
    assert noted == [(maker.lane, entries[-1].lane_seq), (maker.lane, mangled.lane_seq)]
    assert guard_of(bench.databases, maker.sale_id)["quotas"][0][1] == 9


async def test_a_malformed_message_goes_to_the_dead_letters(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 100})
    order = maker.order()
    async with bench.running(0):
        await bench.queue.publish(order_queue(0), b"\x09not a message", message_id="broken")
        await bench.publish([maker.numbered(order)])
        await bench.drained()
    letters, _ = await bench.letters.list(order_queue(0))
    assert [(letter.message_id, letter.body) for letter in letters] == [("broken", b"\x09not a message")]
    assert order.order_id in statuses(bench.databases)


@pytest.mark.parametrize(("lane", "lane_seq"), [(1, 1 << 63), (1, (1 << 64) - 1), (32_768, 1), (65_535, (1 << 64) - 1)])
async def test_places_beyond_the_columns_go_to_the_dead_letters(
    bench: Bench, maker: Maker, lane: int, lane_seq: int
) -> None:
    """The framing is right, but no lane has such numbers: this writer and those of the other shards go on."""
    stock(bench.databases, maker.sale_id, {"SKU-1": 100})
    order = maker.order()
    beyond = SequencedEntry(lane, lane_seq, encode_entry(maker.order()))
    within = SequencedEntry(lane, 7, b"mangled")
    async with bench.running(0):
        await bench.publish([beyond])
        await bench.publish([within, beyond])
        await bench.drained()
        await bench.publish([maker.numbered(order)])
        await bench.drained()
    letters, _ = await bench.letters.list(order_queue(0))
    assert sorted(decode_orders(letter.body)[0].lane_seq for letter in letters) == sorted([7, lane_seq, lane_seq])
    noted = rows(bench.databases.shard_dsns[0], "SELECT lane, lane_seq FROM dead_lettered")
    assert noted == ([(lane, 7)] if lane == 1 else [])
    assert statuses(bench.databases).keys() == {order.order_id}


async def test_an_order_without_a_grant_waits_and_delays_no_other(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 2, "SKU-2": 100})
    sold = [maker.order(lines=[("SKU-1", 1)]) for _ in range(2)]
    waiting = [maker.order(lines=[("SKU-1", 1)]) for _ in range(2)]
    others = [maker.order(lines=[("SKU-2", 1)]) for _ in range(5)]
    async with bench.running(0):
        await bench.publish(maker.numbered(order) for order in (*sold, *waiting, *others[:3]))

        async def others_are_stored() -> bool:
            return statuses(bench.databases).keys() == {order.order_id for order in (*sold, *others[:3])}

        await eventually(others_are_stored)
        # Far more waits than a poison order has attempts, at ever later messages that are not held up.
        for order in others[3:]:
            await bench.publish([maker.numbered(order)])
            await asyncio.sleep(1.0)
        assert len(statuses(bench.databases)) == 7
        with psycopg.connect(bench.databases.catalogue_dsn) as connection:
            connection.execute("UPDATE stock_ledger SET stock = 4 WHERE sku = 'SKU-1'")
        await bench.drained()
    assert len(statuses(bench.databases)) == 9
    assert guard_of(bench.databases, maker.sale_id)["quotas"] == {0: (4, 4)}
    assert await bench.letters.count() == {}


async def test_waits_cost_no_attempt(bench: Bench, maker: Maker) -> None:
    """An order that waited longer than the policy lasts is stored as soon as there is a unit."""
    stock(bench.databases, maker.sale_id, {"SKU-1": 0})
    order = maker.order()
    async with bench.running(0):
        await bench.publish([maker.numbered(order)])

        async def waited_long() -> bool:
            (metadata,) = await bench.redis.hvals(f"queue:{{{order_queue(0)}}}:waiting") or [b""]
            return metadata.count(b"no grant") > FAST_POLICY.attempts_max

        await eventually(waited_long)
        with psycopg.connect(bench.databases.catalogue_dsn) as connection:
            connection.execute("UPDATE stock_ledger SET stock = 1")
        await bench.drained()
    assert statuses(bench.databases) == {order.order_id: (0, 1)}


async def test_a_catalogue_that_is_away_pauses_and_costs_no_attempt(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 100})
    first, second = maker.order(), maker.order()
    server = bench.databases.catalogue_dsn.rpartition("/")[0] + "/postgres"

    def allow(*, connections: bool) -> None:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE catalogue WITH ALLOW_CONNECTIONS {connections}")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'catalogue'")

    async with bench.running(0) as service:
        await bench.publish([maker.numbered(first)])
        await bench.drained()
        allow(connections=False)
        try:
            await bench.publish([maker.numbered(second)])

            async def paused() -> bool:
                return not service.is_ready

            await eventually(paused)
            depth = await bench.queue.depth(order_queue(0))
            assert (depth.messages, depth.retrying) == (1, 0)
            assert not await bench.queue.barrier(order_queue(0), wait_s=0)
            assert second.order_id not in statuses(bench.databases)
        finally:
            allow(connections=True)
        await bench.drained()
        assert service.is_ready
    assert statuses(bench.databases).keys() == {first.order_id, second.order_id}
    assert await bench.letters.count() == {}


async def test_broken_connections_and_held_locks_only_delay(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 1000})
    orders = [maker.order() for _ in range(300)]
    async with bench.running(0, copies=2, batch_max=20):
        for start in range(0, 300, 10):
            await bench.publish(maker.numbered(order) for order in orders[start : start + 10])
            if start % 50 == 0:
                with psycopg.connect(bench.databases.shard_dsns[0], autocommit=True) as connection:
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname IN ('shard_0', 'catalogue') AND pid <> pg_backend_pid()"
                    )
        await bench.drained()
    assert statuses(bench.databases).keys() == {order.order_id for order in orders}
    assert guard_of(bench.databases, maker.sale_id)["quotas"][0][1] == 300
    assert len(event_ids(bench.databases)) == len(set(event_ids(bench.databases))) == 300


async def test_two_writers_share_a_queue(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 1000})
    orders = [maker.order() for _ in range(200)]
    entries = [maker.numbered(order) for order in orders]
    entries += [maker.numbered(later(order, OrderStatus.CANCELLED)) for order in orders[:50]]
    for _ in range(2):  # every entry twice, in another order
        maker.rng.shuffle(entries)
        for start in range(0, len(entries), 10):
            await bench.publish(entries[start : start + 10])
    async with bench.running(0, copies=3, batch_max=30):
        await bench.drained()
    cancelled = {order.order_id for order in orders[:50]}
    assert statuses(bench.databases) == {o.order_id: (2, 2) if o.order_id in cancelled else (0, 1) for o in orders}
    assert guard_of(bench.databases, maker.sale_id)["quotas"][0][1] == 150
    events = event_ids(bench.databases)
    assert len(events) == len(set(events)) == 250


async def test_stopping_during_a_pause_gives_the_messages_back(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 10})
    order = maker.order()
    with psycopg.connect(bench.databases.shard_dsns[0]) as blocker:
        blocker.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        async with bench.running(0) as service:
            await bench.publish([maker.numbered(order)])

            async def paused() -> bool:
                return not service.is_ready

            await eventually(paused)
    assert not await bench.queue.barrier(order_queue(0), wait_s=0)
    async with bench.running(0):
        await bench.drained()
    assert statuses(bench.databases) == {order.order_id: (0, 1)}


async def test_full_dead_letters_pause_the_writer_and_lose_nothing(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 10})
    bench.letters = PostgresDeadLetters(bench.catalogue, letters_max=1)
    order = maker.order()
    async with bench.running(0) as service:
        for number in range(2):
            await bench.queue.publish(order_queue(0), b"\x09not a message", message_id=f"broken-{number}")

        async def paused() -> bool:
            return not service.is_ready and await bench.letters.count() == {order_queue(0): 1}

        await eventually(paused)
        await bench.publish([maker.numbered(order)])
        assert not await bench.queue.barrier(order_queue(0), wait_s=0)
        (first,), _ = await bench.letters.list(order_queue(0))
        assert await bench.letters.delete(first.id)
        await bench.drained()
        (second,), _ = await bench.letters.list(order_queue(0))
    assert {first.message_id, second.message_id} == {"broken-0", "broken-1"}
    assert {first.kind, second.kind} == {FailureKind.MALFORMED}
    assert statuses(bench.databases) == {order.order_id: (0, 1)}


async def test_headers_reach_the_outbox_and_malformed_ones_cost_no_order(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 10})
    entries = [maker.numbered(maker.order()) for _ in range(4)]
    headers = [b'{"traceparent":"00-ab"}', b"", b"no headers", b'{"a":"\\u0000"}']
    traced = [replace(entry, headers=encoded) for entry, encoded in zip(entries, headers, strict=True)]
    async with bench.running(0):
        await bench.queue.publish(order_queue(0), encode_sequenced(traced), message_id="traced")
        await bench.drained()
    assert len(statuses(bench.databases)) == 4
    events = [event for (row,) in rows(bench.databases.shard_dsns[0], "SELECT events FROM outbox") for event in row]
    with_headers = [(event["data"]["order_id"], event["headers"]) for event in events if "headers" in event]
    assert len(events) == 4
    assert with_headers == [(str(decode_entry(entries[0].entry).order_id), {"traceparent": "00-ab"})]


async def test_headers_stay_with_an_order_that_is_taken_apart(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 1})
    sold, waiting = (replace(maker.numbered(maker.order()), headers=b'{"n":"%d"}' % number) for number in range(2))
    async with bench.running(0):
        await bench.queue.publish(order_queue(0), encode_sequenced([sold, waiting]), message_id="traced")

        async def one_is_stored() -> bool:
            return len(statuses(bench.databases)) == 1

        await eventually(one_is_stored)
        with psycopg.connect(bench.databases.catalogue_dsn) as connection:
            connection.execute("UPDATE stock_ledger SET stock = 2")
        await bench.drained()
    events = [event for (row,) in rows(bench.databases.shard_dsns[0], "SELECT events FROM outbox") for event in row]
    assert sorted(event["headers"]["n"] for event in events) == ["0", "1"]


async def test_a_silent_shard_is_not_ready_and_stores_when_it_speaks_again(
    bench: Bench, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections stay open and nothing answers, as with a stopped server: the writer waited without a sign."""
    monkeypatch.setattr(pools, "POSTGRES_CONNECT_S", 1)
    stock(bench.databases, maker.sale_id, {"SKU-1": 100})
    dsn = bench.databases.shard_dsns[0]
    port = urlsplit(dsn).port
    assert port is not None
    orders = [maker.order() for _ in range(20)]
    with FaultProxy(port) as proxy:
        pool = postgres_pool(SecretStr(dsn.replace(f":{port}/", f":{proxy.port}/")), size_max=2, call_s_max=0.3)
        silent = replace(bench, pools=[pool, *bench.pools[1:]])
        async with pool, silent.running(0) as service:

            async def is_ready() -> bool:
                return service.is_ready

            await bench.publish(maker.numbered(order) for order in orders[:10])
            await bench.drained()
            await eventually(is_ready)
            proxy.stall(stalled=True)
            await bench.publish(maker.numbered(order) for order in orders[10:])

            async def says_so() -> bool:
                return service.checks["shard 0"] in [
                    (False, f"database: {name}") for name in ("DatabaseSilent", "PoolTimeout")
                ]

            await eventually(says_so)
            assert not service.is_ready
            proxy.stall(stalled=False)
            await bench.drained()
            await eventually(is_ready)
    assert statuses(bench.databases) == {order.order_id: (0, 1) for order in orders}
    assert guard_of(bench.databases, maker.sale_id)["quotas"] == {0: (20, 20)}
