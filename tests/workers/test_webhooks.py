"""Events of the log to receivers over real servers: slow, dead, failing, gone, paused, redirecting, endless ones."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import redis
from psycopg.rows import dict_row
from pydantic import SecretStr

from devstack.servers import RedisServer
from domain import ids
from domain.events import event_headers, order_event
from domain.notices import NoticeKind, parse_notice
from domain.orders import OrderEntry, OrderStatus
from domain.topology import EMAIL_QUEUE, TOPIC_ORDERS, TOPICS, Topology, outbox_partition
from domain.webhooks import encode_secret, secret_of
from runtime.event_log import NewRecord, open_event_log
from runtime.event_log.redis_streams import positions_key
from runtime.postgres.pool import postgres_pool
from runtime.process.service import Service
from runtime.process.settings import load_settings
from runtime.queue import QueueUnavailable, open_queue
from runtime.queue.redis_streams import RedisStreamsQueue
from runtime.queue.redis_streams import stream_key as queue_key
from runtime.redis.client import redis_client as new_client
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_receiver import WEBHOOK_KEY, Inbox, Receiver
from tests.workers.events import record_of
from tests.workers.making import Maker, later
from tests.workers.test_notifications_tls import certificate as certificate
from workers.webhooks import intake, sender, store
from workers.webhooks.receivers import AT_ONCE_MAX, Ending, Message, Receivers
from workers.webhooks.store import WebhookStore
from workers.webhooks.work import Webhooks

WAIT_S = 20.0
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


class Setup:
    """The worker in this process, its webhooks, and orders to deliver."""

    def __init__(self, url: str, databases: Databases) -> None:
        self.url = url
        self.dsn = databases.catalogue_dsn
        self.redis = new_client(url)
        self.log = open_event_log(url, TOPICS, records_max=10_000)
        self.maker = Maker(random.Random(1), uuid4())
        self.timeout_s = 10.0
        self.settings: dict[str, str] = {}

    def execute(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self.dsn, autocommit=True, row_factory=dict_row) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def webhook(self, inbox: Inbox, *event_types: str, enabled: bool = True) -> UUID:
        webhook_id, salt = ids.new_uuid7(), b"s" * 16
        inbox.secrets.append(encode_secret(secret_of(WEBHOOK_KEY.encode(), webhook_id, salt)))
        self.execute(
            "INSERT INTO webhooks (id, url, description, event_types, salt, enabled, disabled_reason, notify, created_by)"
            " VALUES (%s, %s, '', %s, %s, %s, %s, %s, %s)",
            webhook_id, inbox.url, list(event_types or ("order.*",)), salt, enabled, None if enabled else "staff",
            UUID(int=7), UUID(int=7),
        )  # fmt: skip
        return webhook_id

    def deliveries(self, webhook_id: UUID) -> list[dict[str, Any]]:
        return self.execute("SELECT * FROM webhook_deliveries WHERE webhook_id = %s ORDER BY id", webhook_id)

    def of(self, webhook_id: UUID) -> dict[str, Any]:
        return self.execute("SELECT * FROM webhooks WHERE id = %s", webhook_id)[0]

    def orders(self, number: int, status: OrderStatus = OrderStatus.PAID) -> list[OrderEntry]:
        return [later(self.maker.order(user_id=ids.new_uuid7()), status) for _ in range(number)]

    async def append(self, orders: Iterable[OrderEntry], **headers: str | None) -> list[str]:
        """Their event ids."""
        found = []
        for order in orders:
            document = order_event(order)
            await self.log.append(TOPIC_ORDERS, outbox_partition(document["key"]), [record_of(document, **headers)])
            found.append(document["id"])
        return found

    @asynccontextmanager
    async def running(self, *, backlog_max: int = 1000, failing_s: float = 86_400) -> AsyncIterator[Service]:
        settings = load_settings(
            {"FLASHSALE_LEASE_MS": "2000", "FLASHSALE_WEBHOOK_RETRY_DELAYS_S": "0.1,0.1,0.1,60", **self.settings}
        )
        service = Service("webhooks", settings)
        pool = postgres_pool(SecretStr(self.dsn), size_max=8)
        await pool.open()
        queue = open_queue(self.url, Topology().queues)
        async with Receivers(allowed=LOOPBACK, attempt_s_max=self.timeout_s) as receivers:
            webhooks = Webhooks(
                key=WEBHOOK_KEY.encode(),
                store=WebhookStore(pool, backlog_max=backlog_max, failing_s=failing_s),
                receivers=receivers,
                queue=queue,
                event_log=self.log,
                redis=self.redis,
                service=service,
            )
            work = asyncio.create_task(webhooks.run())
            try:
                async with asyncio.timeout(WAIT_S):
                    while not await self.redis.hexists(positions_key(TOPIC_ORDERS, 15), intake.GROUP):  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                yield service
                assert not work.done()
            finally:
                service.stopping.set()
                async with asyncio.timeout(WAIT_S):
                    await work
                await queue.close()
                await pool.close()


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.02)


@pytest.fixture
async def setup(
    redis_client: redis.Redis, redis_server: RedisServer, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Setup]:
    assert redis_client
    monkeypatch.setattr(intake, "LOOK_S", 0.1)
    monkeypatch.setattr(intake, "SKEW_MS", 0)  # one clock
    monkeypatch.setattr(intake, "RECEIVE_S", 0.3)  # the end of a run waits for it
    monkeypatch.setattr(sender, "LOOK_S", 0.1)
    made = Setup(redis_server.url, databases)
    yield made
    await made.log.close()
    await made.redis.aclose()


async def test_each_webhook_gets_the_events_it_wants(setup: Setup, receiver: Receiver) -> None:
    every, some, none, off = (receiver.inbox(name) for name in ("every", "some", "none", "off"))
    async with setup.running():
        await setup.append(setup.orders(5))  # before any webhook: not delivered
        first, second = setup.webhook(every), setup.webhook(some, "order.expired")
        setup.webhook(none, "sale.*", "order.rejected")
        setup.webhook(off, enabled=False)
        paid = await setup.append(setup.orders(3))
        expired = await setup.append(setup.orders(2, OrderStatus.EXPIRED))
        await until(lambda: len(every.messages) == 5 and len(some.messages) == 2)
        await until(lambda: {row["state"] for row in setup.deliveries(first)} == {"delivered"})
        assert sorted(every.ids) == sorted(paid + expired)
        assert sorted(some.ids) == sorted(expired)
        assert (none.requests, off.requests) == ([], [])
        (message,) = [message for message in every.messages if message["id"] == paid[0]]
        assert message["type"] == "order.paid"
        assert message["data"]["order_id"] == paid[0].partition(":")[0]
        await until(lambda: {row["status"] for row in setup.deliveries(second)} == {200})
        assert [attempt["answer"] for attempt in setup.deliveries(first)[0]["history"]] == ["ok"]


async def test_an_event_that_is_read_again_is_delivered_once(setup: Setup, receiver: Receiver) -> None:
    inbox = receiver.inbox()
    orders = setup.orders(4)
    webhook = setup.webhook(inbox)
    async with setup.running():
        await setup.append(orders)
        await until(lambda: len(inbox.messages) == 4)
    for partition in range(16):
        if await setup.redis.hexists(positions_key(TOPIC_ORDERS, partition), intake.GROUP):
            await setup.redis.hset(positions_key(TOPIC_ORDERS, partition), intake.GROUP, 0)
    async with setup.running():
        (marker,) = await setup.append(setup.orders(1))
        await until(lambda: marker in inbox.ids)
    assert len(inbox.messages) == len(setup.deliveries(webhook)) == 5


async def test_failures_are_retried_with_the_same_id(setup: Setup, receiver: Receiver) -> None:
    inbox = receiver.inbox()
    inbox.answers += [(500, {}), (302, {"Location": inbox.url + "-other"}), (404, {})]
    webhook = setup.webhook(inbox)
    async with setup.running():
        (event,) = await setup.append(setup.orders(1))
        await until(lambda: [row["state"] for row in setup.deliveries(webhook)] == ["delivered"])
        assert inbox.ids == [event]
        assert [headers["webhook-id"] for headers in inbox.requests] == [event] * 4
        (row,) = setup.deliveries(webhook)
        assert [attempt["status"] for attempt in row["history"]] == [500, 302, 404, 200]
        assert setup.of(webhook)["failures"] == 0
    setup.settings["FLASHSALE_WEBHOOK_RETRY_DELAYS_S"] = "0.1"
    inbox.always = 500
    async with setup.running():
        await setup.append(setup.orders(1))
        await until(lambda: setup.deliveries(webhook)[-1]["state"] == "failed")
        row = setup.deliveries(webhook)[-1]
        assert (row["attempts"], row["next_at"], row["status"]) == (2, None, 500)


async def test_a_slow_receiver_holds_up_no_other(setup: Setup, receiver: Receiver) -> None:
    slow, quick = receiver.inbox("slow"), receiver.inbox("quick")
    slow.silent.set()
    first, _ = setup.webhook(slow), setup.webhook(quick)
    async with setup.running():
        events = await setup.append(setup.orders(30))
        await until(lambda: sorted(quick.ids) == sorted(events))
        assert slow.messages == []
        assert len(slow.requests) == AT_ONCE_MAX
        slow.silent.clear()
        await until(lambda: sorted(slow.ids) == sorted(events))
        await until(lambda: {row["state"] for row in setup.deliveries(first)} == {"delivered"})


async def test_no_answer_and_no_server_are_failures(setup: Setup, receiver: Receiver) -> None:
    silent, dead = receiver.inbox("silent"), Inbox("http://127.0.0.1:9/none")
    silent.silent.set()
    setup.timeout_s = 0.3
    first, second = setup.webhook(silent), setup.webhook(dead)
    async with setup.running():
        await setup.append(setup.orders(1))
        await until(lambda: setup.of(first)["failures"] >= 2 and setup.of(second)["failures"] >= 2)
        assert setup.deliveries(first)[0]["history"][0]["answer"] == "no answer within 0.3 s"
        assert setup.deliveries(second)[0]["history"][0]["answer"] == "no connection: ConnectError"
        assert setup.deliveries(second)[0]["status"] is None
        silent.silent.clear()
        await until(lambda: setup.deliveries(first)[0]["state"] in ("delivered", "waiting"))


async def test_a_fault_of_ours_with_one_delivery_holds_up_no_other(
    setup: Setup, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison, good = receiver.inbox("poison"), receiver.inbox("good")
    first, _ = setup.webhook(poison), setup.webhook(good)
    send = Receivers.send

    async def broken(self: Receivers, message: Message) -> Ending:
        if message.url == poison.url:
            raise ZeroDivisionError
        return await send(self, message)

    monkeypatch.setattr(Receivers, "send", broken)
    async with setup.running():
        events = await setup.append(setup.orders(3))
        await until(lambda: sorted(good.ids) == sorted(events))
        await until(lambda: setup.of(first)["failures"] >= 2)
        assert setup.deliveries(first)[0]["history"][0]["answer"] == "not sent: ZeroDivisionError"


async def test_huge_and_endless_answers_are_cut_off(setup: Setup, receiver: Receiver) -> None:
    huge, endless = receiver.inbox("huge"), receiver.inbox("endless")
    huge.body, endless.endless = b"y" * 3_000_000, True
    webhooks = [setup.webhook(huge), setup.webhook(endless)]
    async with setup.running():
        await setup.append(setup.orders(2))
        for webhook in webhooks:
            await until(lambda: [row["state"] for row in setup.deliveries(webhook)] == ["delivered"] * 2)  # noqa: B023
        assert len(setup.deliveries(webhooks[0])[0]["history"][0]["answer"]) == 500


async def test_a_status_counts_although_the_body_outlasts_the_attempt(receiver: Receiver) -> None:
    endless = receiver.inbox("endless")
    endless.endless = True
    endless.secrets.append(encode_secret(b"s" * 32))
    body = b'{"type":"a","timestamp":"b","data":{}}'
    async with Receivers(allowed=LOOPBACK, attempt_s_max=0.5) as receivers:
        ending = await receivers.send(Message(endless.url, "m-1", body, [b"s" * 32]))
    assert (ending.ok, ending.status) == (True, 200)


async def test_redirects_proxies_and_compressed_answers_have_no_effect(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, elsewhere, proxy = receiver.inbox("asked"), receiver.inbox("elsewhere"), receiver.inbox("proxy")
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url.removesuffix("/proxy").replace("127.0.0.1", "127.0.0.9"))
    asked.secrets.append(encode_secret(b"s" * 32))
    packed = gzip.compress(b"y" * 3_000_000)
    asked.body = packed
    body = b'{"type":"a","timestamp":"b","data":{}}'
    async with Receivers(allowed=LOOPBACK) as receivers:
        for status in (301, 302, 303, 307, 308):
            asked.answers.append((status, {"Location": elsewhere.url}))
            ending = await receivers.send(Message(asked.url, "m-1", body, [b"s" * 32]))
            assert (ending.ok, ending.status) == (False, status)
        asked.answers.append((200, {"Content-Encoding": "gzip"}))
        ending = await receivers.send(Message(asked.url, "m-1", body, [b"s" * 32]))
    assert ending.ok and "yyyyyyyy" not in ending.text
    assert elsewhere.requests == proxy.requests == []


async def test_a_queue_that_is_away_holds_up_the_notice_only(
    setup: Setup, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, good = receiver.inbox("gone"), receiver.inbox("good")
    gone.always = 410
    webhook, _ = setup.webhook(gone), setup.webhook(good)
    publish, away, refused = RedisStreamsQueue.publish, [True], []

    async def refusing(self: RedisStreamsQueue, queue: str, *rest: Any, **named: Any) -> Any:
        if away:
            refused.append(queue)
            raise QueueUnavailable("queue", "away")
        return await publish(self, queue, *rest, **named)

    monkeypatch.setattr(RedisStreamsQueue, "publish", refusing)
    async with setup.running() as service:
        await setup.append(setup.orders(1))
        await until(lambda: refused)
        assert not service.is_ready
        events = await setup.append(setup.orders(3))
        await until(lambda: set(events) <= set(good.ids))
        assert setup.of(webhook)["notice_id"] is not None
        away.clear()
        await until(lambda: setup.of(webhook)["notice_id"] is None)
    assert await setup.redis.xlen(queue_key(EMAIL_QUEUE)) >= 1


async def test_gone_disables_at_once_with_a_notice_and_an_audit_entry(setup: Setup, receiver: Receiver) -> None:
    inbox = receiver.inbox()
    inbox.always = 410
    webhook = setup.webhook(inbox)
    async with setup.running():
        await setup.append(setup.orders(1))
        await until(lambda: setup.of(webhook)["disabled_reason"] == "gone" and not setup.of(webhook)["notice_id"])
        asked = len(inbox.requests)
        await setup.append(setup.orders(3))
        await asyncio.sleep(0.5)
        assert len(inbox.requests) == asked
    entries = await setup.redis.xrange(queue_key(EMAIL_QUEUE))
    (notice,) = [parse_notice(next(v for v in fields.values() if v.startswith(b'{"id"'))) for _, fields in entries]
    assert (notice.kind, notice.user_id) == (NoticeKind.WEBHOOK_DISABLED, UUID(int=7))
    (entry,) = setup.execute("SELECT * FROM audit.entries WHERE object = %s", f"webhook:{webhook}")
    assert (entry["actor"], entry["action"]) == ("webhooks", "webhook.disable")
    assert entry["after"] == {"enabled": False, "disabled_reason": "gone"}


async def test_a_webhook_that_keeps_failing_is_disabled(
    setup: Setup, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "FAILURES_MIN", 4)
    inbox = receiver.inbox()
    inbox.always = 500
    webhook = setup.webhook(inbox)
    async with setup.running():  # a day has not passed
        await setup.append(setup.orders(3))
        await until(lambda: setup.of(webhook)["failures"] >= 6)
        assert setup.of(webhook)["enabled"]
    setup.execute("UPDATE webhooks SET failing_since = now() - interval '25 hours'")
    async with setup.running():
        await setup.append(setup.orders(1))
        await until(lambda: setup.of(webhook)["disabled_reason"] == "failing")


async def test_retry_after_pauses_the_webhook(setup: Setup, receiver: Receiver) -> None:
    inbox = receiver.inbox()
    inbox.answers.append((429, {"Retry-After": "3600"}))
    webhook = setup.webhook(inbox)
    async with setup.running():
        await setup.append(setup.orders(1))
        await until(lambda: setup.of(webhook)["paused_until"] is not None)
        await setup.append(setup.orders(2))
        await until(lambda: len(setup.deliveries(webhook)) == 3)
        await asyncio.sleep(0.4)
        assert len(inbox.requests) == 1
        (late,) = setup.execute(
            "SELECT next_at > now() + interval '3500 seconds' AS late FROM webhook_deliveries WHERE attempts = 1"
        )
        assert late["late"]
        setup.execute("UPDATE webhooks SET paused_until = now()")
        setup.execute("UPDATE webhook_deliveries SET next_at = now()")
        await until(lambda: len(inbox.messages) == 3)


async def test_both_secrets_sign_while_one_is_replaced(setup: Setup, receiver: Receiver) -> None:
    inbox = receiver.inbox()
    webhook = setup.webhook(inbox)
    setup.execute(
        "UPDATE webhooks SET previous_salt = salt, previous_until = now() + interval '1 hour', salt = %s", b"n" * 16
    )
    async with setup.running():
        await setup.append(setup.orders(1))
        await until(lambda: len(inbox.messages) == 1)  # verified with the old secret
        assert len(inbox.requests[0]["webhook-signature"].split(" ")) == 2
        setup.execute("UPDATE webhooks SET previous_until = now() - interval '1 second'")
        inbox.secrets[:] = [encode_secret(secret_of(WEBHOOK_KEY.encode(), webhook, b"n" * 16))]
        await setup.append(setup.orders(1))
        await until(lambda: len(inbox.messages) == 2)
        assert len(inbox.requests[1]["webhook-signature"].split(" ")) == 1


async def test_a_full_backlog_skips_events_of_this_webhook_only(setup: Setup, receiver: Receiver) -> None:
    full, other = receiver.inbox("full"), receiver.inbox("other")
    full.silent.set()
    first, second = setup.webhook(full), setup.webhook(other)
    async with setup.running(backlog_max=10):
        for _ in range(25):
            await setup.append(setup.orders(1))
        await until(lambda: setup.of(first)["skipped"] == 15)
        await until(lambda: len(other.messages) + setup.of(second)["skipped"] == 25)
        assert len(setup.deliveries(first)) == 10
        full.silent.clear()
        await until(lambda: len(full.messages) == 10)


async def test_malformed_events_are_passed_over(setup: Setup, receiver: Receiver) -> None:
    inbox = receiver.inbox()
    setup.webhook(inbox)
    async with setup.running():
        await setup.append(setup.orders(1), ce_specversion="2.0")
        await setup.append(setup.orders(1), ce_type="order.\0paid")
        await setup.append(setup.orders(1), ce_time="9999-12-31T23:59:59-14:00")
        for value in (b'{"a": "\\ud800"}', b'{"a": 1e999}'):
            headers = event_headers(order_event(setup.orders(1)[0]))
            await setup.log.append(TOPIC_ORDERS, 3, [NewRecord("key", value, headers)])
        (event,) = await setup.append(setup.orders(1))
        await until(lambda: inbox.ids == [event])


async def test_a_crash_between_answer_and_note_sends_again(setup: Setup, receiver: Receiver) -> None:
    """The request is sent, the answer is not stored: the next process sends it with the same id."""
    inbox = receiver.inbox()
    webhook = setup.webhook(inbox)
    with psycopg.connect(setup.dsn) as blocking:
        inbox.before_answer = lambda: blocking.execute("SELECT FROM webhooks FOR UPDATE") and None  # type: ignore[func-returns-value]
        async with setup.running():
            (event,) = await setup.append(setup.orders(1))
            await until(lambda: inbox.ids == [event])
            inbox.before_answer = lambda: None
            setup.execute(  # the note of the answer waits for the lock: end its connection, as a crash does
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            blocking.rollback()
            await until(lambda: setup.deliveries(webhook)[0]["state"] == "delivered")
    setup.execute("UPDATE webhook_deliveries SET state = 'waiting', next_at = now(), attempts = 0")  # as if not noted
    async with setup.running():
        await until(lambda: inbox.ids == [event, event])
        await until(lambda: setup.deliveries(webhook)[0]["state"] == "delivered")


async def test_the_log_is_pruned(setup: Setup, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "PRUNE_S", 0.0)
    webhook = setup.webhook(receiver.inbox(), enabled=False)
    rows = sorted((ids.new_uuid7(), "delivered", None) for _ in range(30))
    old = UUID(int=(int((time.time() - 40 * 86_400) * 1000) << 80) | 7 << 76)
    for delivery, state, due in [*rows, (old, "waiting", "now"), (ids.new_uuid7(), "waiting", "now")]:
        setup.execute(
            "INSERT INTO webhook_deliveries (id, webhook_id, event_id, event_type, body, state, next_at)"
            " VALUES (%s, %s, %s, 'order.paid', '{}', %s, %s)",
            delivery, webhook, str(delivery), state, due,
        )  # fmt: skip
    setup.settings["FLASHSALE_WEBHOOK_LOG_ROWS_MAX"] = "10"
    async with setup.running():
        await until(lambda: len(setup.deliveries(webhook)) == 11)
        kept = {row["id"] for row in setup.deliveries(webhook)}
    assert {delivery for delivery, *_ in rows[20:]} < kept
    assert old not in kept


async def test_without_webhooks_positions_follow_the_end(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "REST_S", 0.2)
    async with setup.running():
        orders = setup.orders(1)
        await setup.append(orders)
        partition = outbox_partition(str(orders[0].user_id))
        async with asyncio.timeout(WAIT_S):
            while await setup.redis.hget(positions_key(TOPIC_ORDERS, partition), intake.GROUP) != b"1":  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0"])
async def test_no_request_goes_to_a_private_address(receiver: Receiver, host: str) -> None:
    """Otherwise staff of a shop could have this installation send requests to its own servers."""
    inbox = receiver.inbox(host=host)
    port = receiver.server.server_port
    for url in (inbox.url, f"https://{host}:{port}/hook", f"https://{host}/hook", f"https://{host}:8443/hook"):
        async with Receivers() as receivers:
            ending = await receivers.send(Message(url, "m-1", b"{}", [b"s" * 32]))
        assert not ending.ok
        assert ending.status is None
        assert "address" in ending.text
    assert inbox.requests == []


@pytest.mark.parametrize(("host", "ok"), [("127.0.0.1", True), ("localhost", False)])
async def test_tls_verifies_the_name_of_the_url(
    certificate: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch, host: str, ok: bool
) -> None:
    """The connection goes to an address that was checked, and the certificate is that of the name in the URL."""
    trusted, context = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    server = Receiver(context)
    inbox = server.inbox(host=host)
    inbox.secrets.append(encode_secret(b"s" * 32))
    async with Receivers(allowed=LOOPBACK) as receivers:
        ending = await receivers.send(Message(inbox.url, "m-1", b'{"type":"a","timestamp":"b","data":{}}', [b"s" * 32]))
    server.close()
    assert (ending.ok, ending.status, inbox.ids) == ((True, 200, ["m-1"]) if ok else (False, None, []))
    assert server.problems == []
