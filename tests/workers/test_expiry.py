"""Expiry on real Redis and PostgreSQL: due holds are collected once, sales long over are cleared, the rest stays."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid4

import orjson
import psycopg
import pytest
import redis
from structlog.testing import capture_logs

from devstack.servers import RedisServer
from domain import ids, topology
from domain.orders import OrderStatus, encode_value
from domain.outcomes import Transition
from domain.sales import Stock
from reservation.lane import Lanes
from runtime.redis.leases import Lease
from tests.reservation.lane import LANE
from tests.workers.making import TOPOLOGY, Maker
from tests.workers.selling import Market, open_market
from tests.workers.worker_process import stop, worker_process
from tests.workers.writing import Bench, eventually, guard_of, statuses
from workers.expiry import collector
from workers.expiry.backstop import FINAL_TTL_S, Backstop
from workers.expiry.collector import MARGIN_MS, Collector
from workers.expiry.expire import DueOrder, Failures, expire
from workers.expiry.janitor import LISTED_S, Janitor


async def _lease(bench: Bench) -> Lease:
    lease = Lease(bench.redis, key="{test}:lease", fence_key="{test}:fence", life_ms=60_000)
    assert await lease.acquire()
    return lease


async def _past_hold(bench: Bench, market: Market) -> None:
    """Return when the holds of all orders are over by Redis time, margin included."""
    last_ms = max(order.expires_at_ms for order in market.orders)

    async def over() -> bool:
        seconds, microseconds = await bench.redis.time()
        return bool(seconds * 1000 + microseconds // 1000 > last_ms + MARGIN_MS)

    await eventually(over)


async def test_due_holds_are_collected_and_their_units_sold_again(
    bench: Bench, maker: Maker, redis_client: redis.Redis
) -> None:
    market = open_market(bench, maker, redis_client, units=450, hold_ms=1)
    market.buy(450, shard=0)
    await market.store()
    await _past_hold(bench, market)
    lease = await _lease(bench)
    collector = Collector(bench.pools[0], bench.redis)

    assert await collector.collect(lease) is False
    assert market.lane.stock(market.sale).available == 450
    entries = len(market.lane.stream())
    await collector.collect(lease)  # rows are still reserved in the shard: nothing may happen twice
    await Collector(bench.pools[0], bench.redis).collect(lease)  # another instance that remembers nothing
    assert len(market.lane.stream()) == entries == 900
    assert market.lane.stock(market.sale).available == 450

    await market.store()
    assert set(statuses(bench.databases).values()) == {(OrderStatus.EXPIRED, 2)}
    assert guard_of(bench.databases, market.sale.sale_id, "SKU-0") == {
        "ledger": (450, 0),
        "totals": {0: 0},
        "quotas": {0: (0, 0)},
    }
    market.buy(450, shard=2)
    await lease.release()


async def test_holds_that_stay_due_keep_no_other_from_being_collected(
    bench: Bench, maker: Maker, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "PAGES_MAX", 2)
    monkeypatch.setattr(collector, "BATCH_MAX", 3)
    stuck = open_market(bench, maker, redis_client, units=20, hold_ms=1)
    stuck.buy(20, shard=0)
    sold = open_market(bench, Maker(maker.rng, uuid4()), redis_client, units=9, hold_ms=40)
    sold.buy(9, shard=0)
    await sold.store()  # the lane's entries, those of both sales
    assert stuck.lane.close(0, stuck.sale)[0] == 1
    await _past_hold(bench, sold)
    lease = await _lease(bench)
    worker = Collector(bench.pools[0], bench.redis)

    with capture_logs() as logs:
        # 20 rows and 9, six a round: only rounds that collect something go on at once.
        assert [await worker.collect(lease) for _ in range(5)] == [False, False, False, True, False]
    assert sold.lane.stock(sold.sale).available == 9
    assert stuck.lane.stock(stuck.sale).reserved == 20
    assert [line["orders"] for line in logs] == [6, 6, 6, 2]
    assert all(line["reason"].startswith("CORRUPT the sale is closed for recovery") for line in logs)
    assert logs[0]["example"] == str(min(stuck.orders, key=lambda o: (o.expires_at_ms, o.order_id)).order_id)
    # A hold that is stored when the search is past its place: the next one from the beginning finds it.
    assert await worker.collect(lease) is False
    late = open_market(bench, Maker(maker.rng, uuid4()), redis_client, units=1, hold_ms=1)
    late.buy(1, shard=0)
    await late.store()
    await _past_hold(bench, late)
    with psycopg.connect(bench.databases.shard_dsns[0]) as connection:
        connection.execute(
            "UPDATE orders SET expires_at = now() - interval '1 h' WHERE sale_id = %s", (late.sale.sale_id,)
        )
    for _ in range(6):
        await worker.collect(lease)
    assert late.lane.stock(late.sale).available == 1
    await lease.release()


async def test_living_paid_and_cancelled_orders_stay_as_they_are(
    bench: Bench, maker: Maker, redis_client: redis.Redis
) -> None:
    market = open_market(bench, maker, redis_client, units=10)
    living, paid, cancelled = market.buy(3, shard=0)
    await market.store()
    # The shard does not know yet that these two are decided, and believes that every hold is over.
    market.lane.change("settle-5", paid)
    market.cancel(cancelled)
    async with bench.pools[0].connection() as connection:
        await connection.execute("UPDATE orders SET expires_at = now() - interval '1 hour'")
    lease = await _lease(bench)
    before = market.lane.snapshot()
    await Collector(bench.pools[0], bench.redis).collect(lease)
    assert market.lane.snapshot() == before
    due = [DueOrder(order.order_id, order.user_id, order.sale_id) for order in (living, paid, cancelled)]
    answers = await expire(Lanes(bench.redis), due, Failures("test"))
    assert answers == [Transition.NOT_DUE, Transition.CONFLICT, Transition.CONFLICT]
    unknown = replace(due[0], order_id=ids.order_id(unix_ms=1, lane=LANE, bucket=1, random=2))
    foreign = replace(due[0], sale_id=uuid4())
    failures = Failures("test")
    assert await expire(Lanes(bench.redis), [unknown, foreign, due[1]], failures) == [
        Transition.NOT_FOUND, None, Transition.CONFLICT,
    ]  # fmt: skip
    assert list(failures.counts.values()) == [1, 1] and "not known to its lane" in failures.counts
    await lease.release()


async def test_the_backstop_finds_what_is_not_stored(bench: Bench, maker: Maker, redis_client: redis.Redis) -> None:
    market = open_market(bench, maker, redis_client, units=10, hold_ms=1)
    market.buy(4)
    await _past_hold(bench, market)
    lease = await _lease(bench)
    patient = Backstop(bench.pools, bench.redis, cluster=TOPOLOGY, rest_s=0)
    await patient.step(lease)
    assert market.lane.stock(market.sale).available == 6
    await Backstop(bench.pools, bench.redis, cluster=TOPOLOGY, overdue_ms=0).step(lease)
    assert market.lane.stock(market.sale).available == 10
    await lease.release()


async def test_the_backstop_lets_go_of_what_a_rebuild_did_not_restore(
    bench: Bench, maker: Maker, redis_client: redis.Redis
) -> None:
    market = open_market(bench, maker, redis_client, units=10, hold_ms=1)
    (order,) = market.buy(1)
    await _past_hold(bench, market)
    market.lane.close(0, market.sale, mark="mark")
    lease = await _lease(bench)
    backstop = Backstop(bench.pools, bench.redis, cluster=TOPOLOGY, overdue_ms=0, rest_s=0)
    await backstop.step(lease)
    assert await bench.redis.ttl(topology.order_key(order.order_id)) == -1, "it may still be restored"
    reopened = replace(market.sale, epoch=2, version=2)
    assert market.lane.reopen(reopened, 1, [Stock(9, 1, 0, 0, 10, 0, 0)], mark="mark") == 1
    await backstop.step(lease)
    assert 0 < await bench.redis.ttl(topology.order_key(order.order_id)) <= FINAL_TTL_S
    assert await bench.redis.expire(topology.order_key(order.order_id), 100)
    await backstop.step(lease)
    assert 0 < await bench.redis.ttl(topology.order_key(order.order_id)) <= 100
    assert market.lane.stock(market.sale) == Stock(9, 1, 0, 0, 10, 0, 0), "the unit that is reserved is another's"
    await lease.release()


async def test_the_backstop_gives_stored_final_orders_the_ttl_they_missed(
    bench: Bench, maker: Maker, redis_client: redis.Redis
) -> None:
    market = open_market(bench, maker, redis_client, units=10)
    stored, not_stored, held = market.buy(3)
    market.cancel(stored)
    await market.store()
    market.cancel(not_stored)
    lease = await _lease(bench)
    backstop = Backstop(bench.pools, bench.redis, cluster=TOPOLOGY, final_since_ms=0)
    redis_client.set(topology.order_key(ids.order_id(unix_ms=1, lane=LANE, bucket=1, random=2)), b"mangled")
    # A user's hash with ids that look like an order's key.
    redis_client.hset(topology.user_key(LANE, UUID(bytes=b"sale-ends-with}o"), uuid4()), b"", b"x")
    await backstop.step(lease)
    assert 0 < await bench.redis.ttl(topology.order_key(stored.order_id)) <= FINAL_TTL_S
    assert await bench.redis.ttl(topology.order_key(not_stored.order_id)) == -1
    assert await bench.redis.ttl(topology.order_key(held.order_id)) == -1
    await lease.release()


async def test_the_backstop_scans_on_while_a_shard_is_away(
    bench: Bench, maker: Maker, redis_client: redis.Redis
) -> None:
    market = open_market(bench, maker, redis_client, units=40)
    orders = market.buy(40)
    for order in orders:
        market.cancel(order)
    await market.store()
    for order in orders:
        redis_client.persist(topology.order_key(order.order_id))
    lease = await _lease(bench)
    backstop = Backstop(bench.pools, bench.redis, cluster=TOPOLOGY, final_since_ms=0, rest_s=0)
    away = TOPOLOGY.shard_of_order(orders[0].order_id)
    name = bench.databases.shard_dsns[away].rpartition("/")[2]
    with psycopg.connect(bench.databases.catalogue_dsn, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        try:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
            await backstop.step(lease)
        finally:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
    lasting = {order.order_id for order in orders if redis_client.ttl(topology.order_key(order.order_id)) == -1}
    assert lasting == {o.order_id for o in orders if TOPOLOGY.shard_of_order(o.order_id) == away}
    assert 0 < len(lasting) < len(orders)
    await lease.release()


async def test_a_damaged_sale_keeps_no_other_from_being_cleared(
    bench: Bench, maker: Maker, redis_client: redis.Redis
) -> None:
    """Its error reply ended each round of the janitor: the sales behind it stayed in Redis for ever."""
    seconds, _ = await bench.redis.time()
    markets = [
        open_market(bench, Maker(maker.rng, uuid4()), redis_client, units=5, ends_at_ms=(seconds - 7200) * 1000)
        for _ in range(4)
    ]
    damaged = markets[0].sale.sale_id
    redis_client.hset(topology.lane_state_key(LANE), topology.stock_field(damaged, 0), b"short")
    lease = await _lease(bench)
    with capture_logs() as lines:
        await Janitor(bench.redis, kept_s=3600).clear(lease)
    state = markets[0].lane.state()
    assert [m.sale.sale_id for m in markets if topology.definition_field(m.sale.sale_id).encode() in state] == [damaged]
    (line,) = [line for line in lines if line["log_level"] == "error"]
    assert line["sale_id"] == str(damaged) and "CORRUPT" in line["error"]
    await lease.release()


async def test_the_janitor_clears_a_sale_that_is_long_over(
    bench: Bench, maker: Maker, redis_client: redis.Redis
) -> None:
    market = open_market(bench, maker, redis_client, units=20)
    other = open_market(bench, Maker(maker.rng, uuid4()), redis_client, units=5)
    held, *cancelled = market.buy(12)
    other.buy(3)
    for order in cancelled:
        market.cancel(order)
    assert market.lane.restock(market.sale.sale_id, 0, 5, "again") == 1
    seconds, _ = await bench.redis.time()
    over = replace(market.sale, ends_at_ms=(seconds - 7200) * 1000, version=2)
    redis_client.set(topology.sale_key(over.sale_id), orjson.dumps(over.as_document()))
    lease = await _lease(bench)
    users = topology.user_key_pattern(LANE, over.sale_id)

    await Janitor(bench.redis, kept_s=3600).clear(lease)  # the lane itself still takes orders
    assert market.lane.define(over) == 1
    await Janitor(bench.redis, kept_s=7300).clear(lease)  # not yet
    await Janitor(bench.redis, kept_s=3600).clear(lease)  # a unit is still reserved
    assert len(list(redis_client.scan_iter(users))) == 12
    market.cancel(held)
    await Janitor(bench.redis, kept_s=3600).clear(lease)

    assert list(redis_client.scan_iter(users)) == []
    assert not redis_client.exists(topology.restock_key(LANE, over.sale_id))
    assert not any(ids.short(over.sale_id).encode() in name for name in market.lane.state())
    assert other.lane.stock(other.sale).available == 2
    assert len(list(redis_client.scan_iter(topology.user_key_pattern(LANE, other.sale.sale_id)))) == 3
    before = market.lane.snapshot()
    await Janitor(bench.redis, kept_s=3600).clear(lease)
    assert market.lane.snapshot() == before
    await lease.release()


async def test_the_janitor_forgets_a_sale_when_its_lanes_are_clear(
    bench: Bench, maker: Maker, redis_client: redis.Redis
) -> None:
    """Nothing of a sale stays for ever, and a sale that still lives loses nothing."""
    live = open_market(bench, Maker(maker.rng, uuid4()), redis_client, units=5)
    seconds, _ = await bench.redis.time()

    def publish_over(seconds_ago: int) -> str:
        market = open_market(bench, maker, redis_client, units=5, ends_at_ms=(seconds - seconds_ago) * 1000)
        redis_client.hset(topology.REFUSED_KEY_PREFIX + str(market.sale.sale_id), "sold_out", 3)
        redis_client.hset(topology.ACCEPTED_KEY, str(market.sale.sale_id), 5)
        redis_client.hset(topology.VERDICTS_KEY, str(market.sale.sale_id), "{}")
        return str(market.sale.sale_id)

    def left(sale_id: str) -> tuple[int, bool, int, bool]:
        """Document, listed, counts, verdict."""
        refused = redis_client.hlen(topology.REFUSED_KEY_PREFIX + sale_id)
        return (
            int(redis_client.exists(topology.sale_key(UUID(sale_id)))),
            bool(redis_client.sismember(topology.SALES_KEY, sale_id)),
            int(refused) + int(redis_client.hexists(topology.ACCEPTED_KEY, sale_id)),
            bool(redis_client.hexists(topology.VERDICTS_KEY, sale_id)),
        )

    live_id = str(live.sale.sale_id)
    long_over, just_cleared = publish_over(3600 + LISTED_S + 60), publish_over(3600 + 60)
    redis_client.hset(topology.VERDICTS_KEY, live_id, "{}")
    lease = await _lease(bench)
    janitor = Janitor(bench.redis, kept_s=3600)
    channel = redis_client.pubsub(ignore_subscribe_messages=True)
    channel.subscribe(topology.SALES_CHANNEL)

    await janitor.clear(lease)
    assert left(long_over) == (0, True, 2, True), "an edge may still add up what it refused"
    told = [message["data"].decode() for _ in range(5) if (message := channel.get_message(timeout=0.2)) is not None]
    assert told == [f"{topology.SALE_GONE}{long_over}"]
    await Janitor(bench.redis, kept_s=3600).clear(lease)  # another instance, which sees it for the first time
    assert left(long_over) == (0, True, 2, True)
    await janitor.clear(lease)
    assert left(long_over) == (0, False, 0, False)
    assert left(just_cleared) == (1, True, 2, True) and left(live_id) == (1, True, 0, True)
    assert set(live.lane.state()) >= {topology.definition_field(live.sale.sale_id).encode()}
    # A document that Redis lost and the backoffice put back in time.
    document = redis_client.getdel(topology.sale_key(live.sale.sale_id))
    await janitor.clear(lease)
    redis_client.set(topology.sale_key(live.sale.sale_id), document)
    await janitor.clear(lease)
    redis_client.delete(topology.sale_key(live.sale.sale_id))
    await janitor.clear(lease)
    assert left(live_id) == (0, True, 0, True)
    channel.close()
    await lease.release()


async def test_two_processes_collect_and_one_of_them_is_killed(
    bench: Bench, maker: Maker, redis_client: redis.Redis, redis_server: RedisServer
) -> None:
    market = open_market(bench, maker, redis_client, units=40, hold_ms=1)
    market.buy(40)
    await market.store()
    settings = {
        "REDIS_URL": redis_server.url, "QUEUE_URL": redis_server.url, "LEASE_MS": "500",
        "CATALOGUE_DSN": bench.databases.catalogue_dsn, "SHARD_DSNS": ",".join(bench.databases.shard_dsns),
    }  # fmt: skip

    async def collected(count: int) -> bool:
        return market.lane.stock(market.sale).available == count

    with worker_process("workers.expiry", settings) as first, worker_process("workers.expiry", settings) as second:
        await eventually(lambda: collected(40))
        first.kill()
        await market.store()
        market.buy(30)
        await market.store()
        await eventually(lambda: collected(40))
        assert stop(second) == 0
    assert len(market.lane.stream()) == 140
    assert encode_value(market.orders[0]) != redis_client.get(topology.order_key(market.orders[0].order_id))
