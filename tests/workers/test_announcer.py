"""Events of orders to notices on real servers: each in its channel's queue, none without an account."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import redis
from pydantic import SecretStr

from devstack.servers import RedisServer
from domain import ids
from domain.events import order_event
from domain.notices import Channel, Notice, NoticeKind, parse_notice
from domain.orders import OrderEntry, OrderStatus
from domain.payments import PaymentState, RefundReason
from domain.topology import (
    EMAIL_QUEUE,
    POISON_EVENTS,
    PUSH_QUEUE,
    TOPIC_ORDERS,
    TOPIC_PAYMENTS,
    TOPICS,
    outbox_partition,
)
from payments.rows import refund_event
from runtime.dead_letters import open_dead_letters
from runtime.event_log import EventLog, NewRecord, open_event_log
from runtime.event_log.redis_streams import positions_key
from runtime.event_log.redis_streams import stream_key as log_key
from runtime.postgres.pool import postgres_pool
from runtime.process.service import Service
from runtime.process.settings import load_settings
from runtime.queue import Queue, open_queue
from runtime.queue.redis_streams import stream_key as queue_key
from runtime.redis.client import redis_client as new_client
from runtime.redis.leases import Lease
from tests.fixtures.fix_databases import Databases
from tests.workers.events import record_of, topic_of
from tests.workers.making import Maker, later
from tests.workers.test_notifications import TOPOLOGY, make_user, until
from workers.announcer import announcer as module
from workers.announcer import metrics
from workers.announcer.announcer import Announcer, group_of
from workers.announcer.recipients import Recipients
from workers.shards import Shards

WAIT_S = 20.0
LENGTH_MAX = 1_000


class Setup:
    """Announcers, their parts, and orders to announce."""

    def __init__(self, url: str, databases: Databases) -> None:
        self.databases = databases
        self.redis = new_client(url)
        self.queue: Queue = open_queue(url, TOPOLOGY.queues, length_max=LENGTH_MAX)
        self.log: EventLog = open_event_log(url, TOPICS, records_max=10_000)
        self.letters = open_dead_letters(SecretStr(databases.catalogue_dsn))
        self.pools = [postgres_pool(SecretStr(dsn), size_max=2, autocommit=True) for dsn in databases.shard_dsns]
        self.shards = Shards(self.pools)
        self.service = Service("announcer", load_settings({}))
        self.later_s = 0.0
        self.maker = Maker(random.Random(1), uuid4())

    def announcer(self, channel: Channel, lease: Lease, *, with_reserved: bool = False) -> Announcer:
        return Announcer(
            channel,
            event_log=self.log,
            queue=self.queue,
            recipients=Recipients(self.shards, TOPOLOGY, channel),
            letters=self.letters,
            lease=lease,
            service=self.service,
            with_reserved=with_reserved,
            now=lambda: time.time() + self.later_s,
        )

    @asynccontextmanager
    async def running(self, *channels: Channel, with_reserved: bool = False) -> AsyncIterator[None]:
        self.service.stopping.clear()
        leases, tasks = [], []
        for channel in channels or (Channel.EMAIL,):
            lease = Lease(self.redis, key=f"{{t-{channel}}}:l", fence_key=f"{{t-{channel}}}:f", life_ms=5000)
            assert await lease.acquire()
            leases.append(lease)
            tasks.append(asyncio.create_task(self.announcer(channel, lease, with_reserved=with_reserved).run()))
        try:
            # A new group has its position then.
            for channel in channels or (Channel.EMAIL,):
                async with asyncio.timeout(WAIT_S):
                    while not await self.redis.hexists(positions_key(TOPIC_PAYMENTS, 15), group_of(channel)):  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
            yield
            assert not any(task.done() for task in tasks)
        finally:
            self.service.stopping.set()
            async with asyncio.timeout(WAIT_S):
                await asyncio.gather(*tasks)
            for lease in leases:
                await lease.release()

    async def append(self, events: Iterable[dict[str, Any]]) -> None:
        by_place: dict[tuple[str, int], list[NewRecord]] = {}
        for event in events:
            by_place.setdefault((topic_of(event), outbox_partition(event["key"])), []).append(record_of(event))
        for (topic, partition), records in by_place.items():
            for first in range(0, len(records), 1000):
                await self.log.append(topic, partition, records[first : first + 1000])

    def order(self, user_id: UUID | None = None, status: OrderStatus = OrderStatus.PAID) -> OrderEntry:
        entry = self.maker.order(user_id=user_id or ids.new_uuid7(), lines=(("SKU-1", 2), ("SKU-2", 1)))
        return entry if status is OrderStatus.RESERVED else later(entry, status)

    async def announced(self, channel: Channel = Channel.EMAIL) -> list[Notice]:
        """The notices in the channel's queue."""
        entries = await self.redis.xrange(queue_key(EMAIL_QUEUE if channel is Channel.EMAIL else PUSH_QUEUE))
        return [parse_notice(next(v for k, v in fields.items() if v.startswith(b'{"id"'))) for _, fields in entries]

    async def count(self, number: int, channel: Channel = Channel.EMAIL) -> list[Notice]:
        async with asyncio.timeout(WAIT_S):
            while len(found := await self.announced(channel)) < number:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert len(found) == number
        return found

    async def drained(self, channel: Channel = Channel.EMAIL) -> None:
        """All events are read and committed."""
        async with asyncio.timeout(WAIT_S):
            while True:
                waiting = 0
                for topic in (TOPIC_ORDERS, TOPIC_PAYMENTS):
                    async with self.log.reader(group_of(channel), topic, range(16)) as reader:
                        waiting += sum(lag.records for lag in (await reader.lag()).values())
                if not waiting:
                    return
                await asyncio.sleep(0.02)

    def execute(self, user_id: UUID, statement: str, *parameters: object) -> None:
        dsn = self.databases.shard_dsns[TOPOLOGY.shard_of_user(user_id)]
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(statement, parameters)

    def subscribe(self, user_id: UUID) -> None:
        self.execute(
            user_id,
            "INSERT INTO push_subscriptions (id, user_id, endpoint, p256dh, auth) VALUES (%s, %s, %s, %s, %s)",
            uuid4(), user_id, f"https://push.example/{uuid4()}", b"p" * 65, b"a" * 16,
        )  # fmt: skip


@pytest.fixture
async def setup(
    redis_client: redis.Redis, redis_server: RedisServer, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Setup]:
    assert redis_client.dbsize() == 0
    monkeypatch.setattr(module, "RECEIVE_S", 0.05)  # announcers stop sooner
    monkeypatch.setattr(module, "GATHER_S", 0.01)
    made = Setup(redis_server.url, databases)
    for pool in made.pools:
        await pool.open()
    yield made
    for pool in made.pools:
        await pool.close()
    await made.letters.close()
    await made.queue.close()
    await made.log.close()
    await made.redis.aclose()


def counted(result: str, channel: Channel = Channel.EMAIL) -> float:
    return float(metrics.EVENTS.labels(channel, result)._value.get())


async def test_each_event_of_a_buyer_with_an_account_becomes_a_notice(setup: Setup, databases: Databases) -> None:
    buyer = make_user(databases)
    ended = (OrderStatus.PAID, OrderStatus.CANCELLED, OrderStatus.EXPIRED)
    orders = [setup.order(buyer, status) for status in (OrderStatus.RESERVED, *ended, OrderStatus.REJECTED)]
    refund_id, paid = uuid4(), orders[1]
    refund = refund_event(
        PaymentState.REFUNDED, refund_id=refund_id, event_id="evt", order_id=paid.order_id, user_id=buyer, sale_id=paid.sale_id,
        amount_minor=1999, currency="JPY", reason="second",
    )  # fmt: skip
    async with setup.running():
        await setup.append([*(order_event(order) for order in orders), refund])
        notices = await setup.count(4)
    found = {notice.kind: notice for notice in notices}
    assert set(found) == {
        NoticeKind.ORDER_PAID, NoticeKind.ORDER_CANCELLED, NoticeKind.ORDER_EXPIRED, NoticeKind.ORDER_REFUNDED,
    }  # fmt: skip
    news = found[NoticeKind.ORDER_PAID].order
    assert news is not None
    assert (news.order_id, news.amount_minor, news.currency) == (paid.order_id, 3 * 1999, "EUR")
    assert [(line.sku, line.quantity, line.unit_price_minor) for line in news.lines] == [
        ("SKU-1", 2, 1999), ("SKU-2", 1, 1999),
    ]  # fmt: skip
    assert (news.at_ms, news.expires_at_ms) == (paid.changed_at_ms, paid.expires_at_ms)
    refunded = found[NoticeKind.ORDER_REFUNDED].order
    assert refunded is not None
    assert (refunded.amount_minor, refunded.currency, refunded.reason) == (1999, "JPY", RefundReason.SECOND)


async def test_reserved_orders_are_announced_by_a_setting_only(setup: Setup, databases: Databases) -> None:
    buyer = make_user(databases)
    async with setup.running(with_reserved=True):
        await setup.append([order_event(setup.order(buyer, OrderStatus.RESERVED))])
        (notice,) = await setup.count(1)
    assert notice.kind is NoticeKind.ORDER_RESERVED


async def test_events_of_before_the_first_start_are_not_announced(setup: Setup, databases: Databases) -> None:
    buyer = make_user(databases)
    await setup.append([order_event(setup.order(buyer))])
    async with setup.running():
        await setup.append([order_event(order := setup.order(buyer))])
        (notice,) = await setup.count(1)
        await setup.drained()
    assert notice.order is not None and notice.order.order_id == order.order_id
    # Those of before the second start are.
    await setup.append([order_event(setup.order(buyer))])
    async with setup.running():
        await setup.count(2)


async def test_buyers_without_an_account_get_nothing_by_one_query_a_shard(
    setup: Setup, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    muted = Recipients._muted

    async def counting(self: Recipients, shard: int, user_ids: Iterable[UUID]) -> Any:
        users = list(user_ids)
        asked.append(len(users))
        return await muted(self, shard, users)

    monkeypatch.setattr(Recipients, "_muted", counting)
    buyer, before = make_user(databases), counted("not wanted")
    crowd = [setup.order(status=OrderStatus.EXPIRED) for _ in range(2000)]
    # All in the log before the announcer reads on: the batches are as large as they get.
    async with setup.running():
        pass
    await setup.append([*map(order_event, crowd), order_event(setup.order(buyer, OrderStatus.EXPIRED))])
    async with setup.running():
        await setup.count(1)
        await setup.drained()
    assert sum(asked) == 2001 and len(asked) <= 30, asked
    assert counted("not wanted") - before == 2000


async def test_kinds_that_a_buyer_switched_off_are_not_announced(setup: Setup, databases: Databases) -> None:
    buyer = make_user(databases)
    setup.execute(buyer, "INSERT INTO notice_preferences (user_id, email_off) VALUES (%s, '{order_paid}')", buyer)
    async with setup.running():
        await setup.append(order_event(setup.order(buyer, s)) for s in (OrderStatus.PAID, OrderStatus.EXPIRED))
        (notice,) = await setup.count(1)
        await setup.drained()
    assert notice.kind is NoticeKind.ORDER_EXPIRED


async def test_pushes_go_to_buyers_with_a_browser_and_hold_up_no_letter(setup: Setup, databases: Databases) -> None:
    """Each channel reads the log for itself: a queue of pushes that is full stops no letter."""
    buyer, other = make_user(databases), make_user(databases, "other@shop.example")
    setup.subscribe(buyer)
    setup.subscribe(buyer)
    for number in range(LENGTH_MAX):
        await setup.queue.publish(PUSH_QUEUE, b"{}", message_id=str(number))
    async with setup.running(Channel.EMAIL, Channel.PUSH):
        await setup.append([order_event(setup.order(buyer)), order_event(setup.order(other))])
        letters = await setup.count(2)
        await setup.drained()
        await until(lambda: setup.service.checks.get("queue", (True, ""))[1] == "QueueFull")
        assert not setup.service.is_ready
        await setup.redis.delete(queue_key(PUSH_QUEUE))
        (push,) = await setup.count(1, Channel.PUSH)
        await until(lambda: setup.service.is_ready)
    assert push.user_id == buyer
    (letter,) = [letter for letter in letters if letter.user_id == buyer]
    assert letter.order == push.order and letter.id != push.id


async def test_while_no_browser_is_subscribed_events_are_passed_over_unread(
    setup: Setup, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every installation without web push, and in every load test: the log is read once, not twice."""
    monkeypatch.setattr(module, "SKIP_S", 0.02)
    buyer, before = make_user(databases), counted("not wanted", Channel.PUSH)
    async with setup.running(Channel.PUSH):
        await setup.append([order_event(setup.order(buyer)) for _ in range(50)])
        await until(lambda: counted("not wanted", Channel.PUSH) - before == 50)
        setup.subscribe(buyer)
        await setup.append([order_event(order := setup.order(buyer))])
        (notice,) = await setup.count(1, Channel.PUSH)
        await setup.drained(Channel.PUSH)
    assert notice.order is not None and notice.order.order_id == order.order_id
    async with setup.running(Channel.PUSH):
        await setup.append([order_event(setup.order(buyer))])
        await setup.count(2, Channel.PUSH)


async def test_a_log_that_lost_data_is_read_from_its_beginning_although_no_browser_was_subscribed(
    setup: Setup, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SKIP_S", 0.02)
    buyer = make_user(databases)
    for partition in range(16):
        await setup.redis.hset(positions_key(TOPIC_ORDERS, partition), group_of(Channel.PUSH), 1_000)
    setup.subscribe(buyer)
    async with setup.running(Channel.PUSH):
        await setup.append([order_event(setup.order(buyer))])
        await setup.count(1, Channel.PUSH)


async def test_events_without_a_notice_cost_few_commits(
    setup: Setup, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit is a synced write, on the Redis that takes the orders in an embedded stack."""
    monkeypatch.setattr(module, "COMMIT_S", 3600)
    buyer, before = make_user(databases), counted("other type")
    async with setup.running():
        pass
    synced = (await setup.redis.info("commandstats")).get("cmdstat_hset", {}).get("calls", 0)
    await setup.append([order_event(setup.order(buyer, OrderStatus.RESERVED)) for _ in range(300)])
    async with setup.running():
        await until(lambda: counted("other type") - before == 300)
        calls = (await setup.redis.info("commandstats")).get("cmdstat_hset", {}).get("calls", 0)
        assert calls == synced
    await setup.drained()  # a stop commits
    before = counted("other type")
    async with setup.running():
        await setup.append([order_event(setup.order(buyer))])
        await setup.count(1)
        await setup.drained()  # so does a notice
    assert counted("other type") == before


async def test_an_event_that_comes_twice_has_one_id(setup: Setup, databases: Databases) -> None:
    """Also when the announcer ended between publishing and committing: senders then drop the second."""
    buyer = make_user(databases)
    event = order_event(setup.order(buyer))
    async with setup.running():
        await setup.append([event, event])  # in one batch
        await setup.drained()
        await setup.append([event])
        notices = await setup.count(2)
    assert len({notice.id for notice in notices}) == 1


async def test_a_crash_before_the_commit_repeats_and_loses_nothing(
    setup: Setup, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer = make_user(databases)
    async with setup.running():
        pass
    await setup.append([order_event(setup.order(buyer))])
    lease = Lease(setup.redis, key="{t}:l", fence_key="{t}:f", life_ms=5000)
    assert await lease.acquire()
    announcer = setup.announcer(Channel.EMAIL, lease)
    reached = asyncio.Event()

    async def never(_: str, operation: Callable[[], Any]) -> Any:
        if getattr(operation, "__name__", "") == "commit":
            reached.set()
            await asyncio.sleep(3600)
        return await operation()

    setup.service.stopping.clear()
    monkeypatch.setattr(announcer, "_through", never)
    crashing = asyncio.create_task(announcer.run())
    async with asyncio.timeout(WAIT_S):
        await reached.wait()
    crashing.cancel()
    await lease.release()
    async with setup.running():
        first, second = await setup.count(2)
        await setup.drained()
    assert first == second


async def test_events_of_unknown_types_schemas_and_forms_are_counted_and_passed_over(
    setup: Setup, databases: Databases
) -> None:
    buyer = make_user(databases)
    good = order_event(setup.order(buyer))
    results = ("unknown type", "unknown schema", "malformed", "other type")
    before = [counted(result) for result in results]
    async with setup.running():
        await setup.append(
            [
                {**good, "type": "order.shipped"},
                {**good, "schema": 2},
                {**good, "data": {**good["data"], "items": []}},
                {**good, "id": "x" * 401},
                {**good, "type": "payment.captured"},
            ]
        )
        broken = [
            record_of(good, ce_type="order.7"),
            *(record_of(good, **{f"ce_{name}": None}) for name in ("id", "type", "dataschema", "specversion")),
            NewRecord("k", b"[]", record_of(good).headers),
        ]
        await setup.log.append(TOPIC_ORDERS, 3, broken)
        await setup.log.append(TOPIC_ORDERS, 3, [NewRecord("k", b"\xff")])
        await setup.redis.xadd(log_key(TOPIC_ORDERS, 3), {"odd": "entry"}, id="0-*")
        await setup.append([good])
        await setup.count(1)
        await setup.drained()
    assert [counted(r) - b for r, b in zip(results, before, strict=True)] == [2, 1, 9, 1]
    poison, _ = await setup.letters.list(POISON_EVENTS)
    assert len(poison) == 9 and {letter.replayable for letter in poison} == {False}
    [last] = [letter for letter in poison if letter.body == b"\xff"]
    assert last.message_id == f"{TOPIC_ORDERS}/3:{last.headers['offset']}"
    assert last.headers["topic"] == TOPIC_ORDERS


async def test_events_that_the_log_dropped_are_counted_and_the_rest_goes_on(setup: Setup, databases: Databases) -> None:
    buyer = make_user(databases)
    orders = [setup.order(buyer) for _ in range(30)]
    async with setup.running():
        await setup.append([order_event(orders[0])])
        await setup.count(1)
        await setup.drained()
    before = metrics.LOST.labels(Channel.EMAIL)._value.get()
    for order in orders[1:]:  # one partition
        await setup.log.append(
            TOPIC_ORDERS,
            outbox_partition(str(buyer)),
            [record_of(order_event(order))],
        )
    await setup.redis.xtrim(log_key(TOPIC_ORDERS, outbox_partition(str(buyer))), maxlen=10, approximate=False)
    async with setup.running():
        await setup.count(11)
        await setup.drained()
    assert metrics.LOST.labels(Channel.EMAIL)._value.get() - before == 19


async def test_records_older_than_the_records_of_sent_notices_are_not_announced(
    setup: Setup, databases: Databases
) -> None:
    """A log that lost data is read again from its oldest record: no buyer gets the letters of yesterday again."""
    buyer = make_user(databases)
    await setup.append([order_event(setup.order(buyer)) for _ in range(3)])
    for partition in range(16):
        await setup.redis.hset(positions_key(TOPIC_ORDERS, partition), group_of(Channel.EMAIL), 1_000)
    before = counted("too old")
    setup.later_s = module.RECORD_AGE_S_MAX + 60
    async with setup.running():
        await until(lambda: counted("too old") - before == 3)
    assert await setup.announced() == []


async def test_a_shard_that_is_away_holds_up_no_other(
    setup: Setup, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its drafts go to the sender, which waits for the shard with each of them alone."""
    monkeypatch.setattr("workers.shards.CONNECTION_S", 0.2)
    buyer, other = make_user(databases), make_user(databases, "other@shop.example")
    shard = TOPOLOGY.shard_of_user(buyer)
    while TOPOLOGY.shard_of_user(other) == shard:
        other = make_user(databases, f"{other}@shop.example")
    good, setup.pools[shard] = setup.pools[shard], postgres_pool(SecretStr("postgresql://x@127.0.0.1:1/x"))
    await setup.pools[shard].open()
    setup.shards = Shards(setup.pools)
    async with setup.running():
        await setup.append([order_event(setup.order(buyer)), order_event(setup.order(other))])
        notices = await setup.count(2)
    bad, setup.pools[shard] = setup.pools[shard], good
    await bad.close()
    assert {notice.user_id for notice in notices} == {buyer, other}
