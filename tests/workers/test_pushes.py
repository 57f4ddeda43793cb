"""Notices to web pushes on real servers: the result of each answer of a push service, and no push twice."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_network
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
import redis
from pydantic import SecretStr

from devstack.servers import RedisServer
from domain import ids
from domain.notices import ORDER_KINDS, Channel, Notice, NoticeKind, notice_event, notice_of_order
from domain.topology import PUSH_QUEUE
from notices.composing import Composer
from notices.samples import SAMPLE_ORDER, sample
from runtime.dead_letters import open_dead_letters
from runtime.outbound.addresses import is_allowed
from runtime.postgres.pool import postgres_pool
from runtime.process.service import Service
from runtime.process.settings import load_settings
from runtime.queue import Delivery, FailureKind, Queue, RetryPolicy, open_queue
from runtime.redis.client import redis_client as new_client
from runtime.tokens.vapid import VapidKey, VapidKeyInvalid, new_vapid_key
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_push import Browser, PushServiceProcess, b64, decrypted, unb64
from tests.workers.test_notifications import TOPOLOGY, make_user, prefer, until
from workers.consuming import Consuming
from workers.notifications import push_sender as module
from workers.notifications.push_sender import PushOffice, PushSender
from workers.notifications.push_services import Gone, Later, Pushed, PushServices, Subscription
from workers.notifications.records import COUNTED_PER_HOUR_MAX, Records
from workers.notifications.subscriptions import Subscriptions
from workers.shards import Shards

WAIT_S = 20.0
LOOPBACK = (ip_network("127.0.0.0/8"),)


class Setup:
    """Senders and their parts."""

    def __init__(self, url: str, databases: Databases, key: VapidKey) -> None:
        self.databases = databases
        self.queue: Queue = open_queue(url, TOPOLOGY.queues)
        self.letters = open_dead_letters(SecretStr(databases.catalogue_dsn))
        self.cache = new_client(url.removesuffix("/0") + "/1")
        self.pools = [postgres_pool(SecretStr(dsn), size_max=2) for dsn in databases.shard_dsns]
        self.service = Service("notifications", load_settings({}))
        self.key = key
        self.push_s_max = 10.0

    @asynccontextmanager
    async def running(self, delays_ms: tuple[int, ...] = (10, 20), *, senders: int = 1) -> AsyncIterator[None]:
        self.service.stopping.clear()
        async with PushServices(
            self.key, contact="mailto:ops@shop.example", allowed=LOOPBACK, push_s_max=self.push_s_max
        ) as services:
            office = PushOffice(
                Subscriptions(Shards(self.pools), TOPOLOGY),
                Records(self.cache),
                Composer("https://shop.example"),
                services,
                "en",
            )
            made = [
                PushSender(
                    queue=self.queue,
                    letters=self.letters,
                    office=office,
                    service=self.service,
                    policy=RetryPolicy(delays_ms),
                )
                for _ in range(senders)
            ]
            tasks = [asyncio.create_task(sender.run()) for sender in made]
            try:
                yield
                assert not any(task.done() for task in tasks)
            finally:
                self.service.stopping.set()
                async with asyncio.timeout(WAIT_S):
                    await asyncio.gather(*tasks)

    async def tell(self, notice: Notice) -> None:
        await self.queue.publish(PUSH_QUEUE, json.dumps(notice_event(notice)).encode(), message_id=str(notice.id))

    async def settled(self) -> None:
        assert await self.queue.barrier(PUSH_QUEUE, wait_s=WAIT_S)

    async def dead(self) -> list[tuple[FailureKind, str]]:
        letters, _ = await self.letters.list(PUSH_QUEUE)
        return [(letter.kind, letter.reason) for letter in letters]

    def execute(self, user_id: UUID, statement: str, *parameters: object) -> list[Any]:
        dsn = self.databases.shard_dsns[TOPOLOGY.shard_of_user(user_id)]
        with psycopg.connect(dsn, autocommit=True) as connection:
            cursor = connection.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def subscribe(self, user_id: UUID, browser: Browser) -> None:
        self.execute(
            user_id,
            "INSERT INTO push_subscriptions (id, user_id, endpoint, p256dh, auth) VALUES (%s, %s, %s, %s, %s)",
            ids.new_uuid7(), user_id, browser.endpoint, browser.point, browser.auth,
        )  # fmt: skip

    def subscribed(self, user_id: UUID) -> list[str]:
        return [
            row[0]
            for row in self.execute(
                user_id, "SELECT endpoint FROM push_subscriptions WHERE user_id = %s ORDER BY id", user_id
            )
        ]


def news(user_id: UUID, kind: NoticeKind = NoticeKind.ORDER_PAID, event: str = "e") -> Notice:
    order = sample(kind).order
    assert order is not None
    return notice_of_order(kind, user_id, order, event_id=f"{user_id}:{kind}:{event}", channel=Channel.PUSH)


@pytest.fixture
async def setup(
    redis_client: redis.Redis,
    redis_server: RedisServer,
    databases: Databases,
    push_service: PushServiceProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Setup]:
    assert redis_client.dbsize() == 0
    monkeypatch.setattr(module, "RECEIVE_S", 0.05)  # senders stop sooner
    made = Setup(redis_server.url, databases, push_service.key)
    for pool in made.pools:
        await pool.open()
    yield made
    for pool in made.pools:
        await pool.close()
    await made.queue.close()
    await made.letters.close()
    await made.cache.aclose()


async def test_every_browser_of_the_account_shows_the_notice(
    setup: Setup, databases: Databases, push_service: PushServiceProcess
) -> None:
    """The service verifies the key of this installation, and decrypts each push with the keys of its browser."""
    user_id, other = make_user(databases), make_user(databases, "other@shop.example")
    prefer(databases, user_id, language="de")
    first, second, others = push_service.browser(), push_service.browser(), push_service.browser()
    for owner, browser in ((user_id, first), (user_id, second), (other, others)):
        setup.subscribe(owner, browser)
    async with setup.running():
        await setup.tell(news(user_id))
        await setup.tell(news(other, NoticeKind.ORDER_REFUNDED))
        await setup.settled()
    topic = b64(SAMPLE_ORDER.bytes)
    expected = {
        "title": "Bestellung bezahlt",
        "body": "Wir haben 1.259,98 EUR erhalten. Vielen Dank.",
        "url": f"https://shop.example/shop/orders/{SAMPLE_ORDER}",
        "tag": topic,
        "lang": "de",
    }
    assert first.pushes == second.pushes == [expected]
    assert others.pushes[0]["title"] == "Refund" and others.pushes[0]["tag"] == f"{topic}-refund"
    assert first.headers[0]["Topic"] == topic and first.headers[0]["TTL"] == str(4 * 3600)
    assert await setup.dead() == []


async def test_a_notice_that_comes_twice_is_pushed_once(
    setup: Setup, databases: Databases, push_service: PushServiceProcess
) -> None:
    user_id, browser = make_user(databases), push_service.browser()
    setup.subscribe(user_id, browser)
    async with setup.running(senders=2):
        for _ in range(4):
            await setup.tell(news(user_id))
        await setup.settled()
    assert len(browser.pushes) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_service_that_is_busy_gets_the_push_again_and_no_other_browser_does(
    setup: Setup, databases: Databases, push_service: PushServiceProcess, status: int
) -> None:
    user_id, good, busy = make_user(databases), push_service.browser(), push_service.browser()
    busy.answers = [(status, {}), (status, {"Retry-After": "0"})]
    for browser in (good, busy):
        setup.subscribe(user_id, browser)
    async with setup.running():
        await setup.tell(news(user_id))
        await setup.settled()
    assert (len(good.pushes), good.asked) == (1, 1)
    assert (len(busy.pushes), busy.asked) == (1, 3)
    assert await setup.dead() == []


async def test_a_service_that_stays_busy_is_given_up(
    setup: Setup, databases: Databases, push_service: PushServiceProcess
) -> None:
    user_id, browser = make_user(databases), push_service.browser()
    browser.answers = [(503, {})] * 3
    setup.subscribe(user_id, browser)
    async with setup.running():
        await setup.tell(news(user_id))
        await setup.settled()
    assert (browser.asked, browser.pushes) == (3, [])
    assert await setup.dead() == [(FailureKind.DEFERRED_BY_RECEIVER, "503")]
    assert setup.subscribed(user_id) == [browser.endpoint]


async def test_retry_after_chooses_the_delay_of_the_ladder(
    setup: Setup, databases: Databases, push_service: PushServiceProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter knows the delays of the ladder only: the first that is long enough, or the longest."""
    user_id, browser = make_user(databases), push_service.browser()
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    browser.answers = [(429, {"Retry-After": "1"}), (503, {"Retry-After": in_an_hour})]
    setup.subscribe(user_id, browser)
    delays: list[int] = []

    async def at_once(_: Consuming, delivery: Delivery, delay_ms: int, kind: FailureKind, reason: str) -> None:
        delays.append(delay_ms)
        await delivery.retry(0, kind, reason)

    monkeypatch.setattr(Consuming, "retry", at_once)
    async with setup.running(delays_ms=(10, 1_100, 1_200)):
        await setup.tell(news(user_id))
        await setup.settled()
    assert delays == [1_100, 1_200] and len(browser.pushes) == 1


@pytest.mark.parametrize("status", [404, 410])
async def test_a_subscription_that_has_ended_is_deleted(
    setup: Setup, databases: Databases, push_service: PushServiceProcess, status: int
) -> None:
    user_id, good, ended = make_user(databases), push_service.browser(), push_service.browser()
    ended.answers = [(status, {})]
    for browser in (good, ended):
        setup.subscribe(user_id, browser)
    async with setup.running():
        await setup.tell(news(user_id))
        await setup.settled()
    assert setup.subscribed(user_id) == [good.endpoint] and len(good.pushes) == 1
    assert await setup.dead() == []


@pytest.mark.parametrize("status", [301, 400, 403, 413])
async def test_other_answers_are_dead_letters_and_keep_the_subscription(
    setup: Setup, databases: Databases, push_service: PushServiceProcess, status: int
) -> None:
    user_id, browser = make_user(databases), push_service.browser()
    browser.answers = [(status, {"Location": push_service.browser().endpoint})]
    setup.subscribe(user_id, browser)
    async with setup.running():
        await setup.tell(news(user_id))
        await setup.settled()
    assert await setup.dead() == [(FailureKind.REJECTED_BY_RECEIVER, str(status))]
    assert browser.asked == 1 and setup.subscribed(user_id) == [browser.endpoint]


async def test_a_silent_service_is_left_alone_for_a_while(
    setup: Setup, databases: Databases, push_service: PushServiceProcess
) -> None:
    """Each push to it would hold a sender for its time limit."""
    setup.push_s_max = 0.3
    silent, ok = PushServiceProcess(push_service.key), make_user(databases)
    silent.silent.set()
    users = [make_user(databases, f"b{number}@x.example") for number in range(4)]
    browsers = [silent.browser() for _ in users]
    good = push_service.browser()
    setup.subscribe(ok, good)
    for user_id, browser in zip(users, browsers, strict=True):
        setup.subscribe(user_id, browser)
    async with setup.running(delays_ms=(10,)):
        await setup.tell(news(users[0]))
        await setup.settled()
        for user_id in (*users[1:], ok):
            await setup.tell(news(user_id))
        await setup.settled()
    silent.close()
    assert sum(browser.asked for browser in browsers) == 1
    assert len(good.pushes) == 1
    assert {kind for kind, _ in await setup.dead()} == {FailureKind.DEFERRED_BY_RECEIVER}


async def test_a_slow_push_holds_up_no_other(
    setup: Setup, databases: Databases, push_service: PushServiceProcess
) -> None:
    slow, ok, good = PushServiceProcess(push_service.key), make_user(databases), push_service.browser()
    slow.silent.set()
    user_id, waiting = make_user(databases, "slow@x.example"), slow.browser()
    setup.subscribe(user_id, waiting)
    setup.subscribe(ok, good)
    async with setup.running():
        await setup.tell(news(user_id))
        await until(lambda: waiting.asked == 1)
        for number in range(5):
            await setup.tell(news(ok, event=str(number)))
        await until(lambda: len(good.pushes) == 5)
        assert waiting.pushes == []
        slow.silent.clear()
        await setup.settled()
    slow.close()
    assert len(waiting.pushes) == 1


async def test_notices_without_a_push(setup: Setup, databases: Databases, push_service: PushServiceProcess) -> None:
    stranger, muted, bare = ids.new_uuid7(), make_user(databases), make_user(databases, "bare@x.example")
    browser = push_service.browser()
    setup.subscribe(muted, browser)
    setup.execute(muted, "INSERT INTO notice_preferences (user_id, push_off) VALUES (%s, %s)", muted, list(ORDER_KINDS))
    async with setup.running():
        for user_id in (stranger, muted, bare):
            for kind in ORDER_KINDS:
                await setup.tell(news(user_id, kind))
        await setup.settled()
        await setup.queue.publish(PUSH_QUEUE, b"\xff", message_id="x")
        body = json.dumps(notice_event(Notice(ids.new_uuid7(), NoticeKind.PASSWORD_RESET, muted))).encode()
        await setup.queue.publish(PUSH_QUEUE, body, message_id="y")
        await setup.settled()
    assert browser.asked == 0
    assert [kind for kind, _ in await setup.dead()] == [FailureKind.MALFORMED] * 2


async def test_a_buyer_cannot_send_many_pushes(
    setup: Setup, databases: Databases, push_service: PushServiceProcess
) -> None:
    user_id, browser = make_user(databases), push_service.browser()
    setup.subscribe(user_id, browser)
    async with setup.running():
        for number in range(COUNTED_PER_HOUR_MAX + 3):
            await setup.tell(news(user_id, NoticeKind.ORDER_CANCELLED, str(number)))
        await setup.tell(news(user_id))
        await setup.settled()
    assert len(browser.pushes) == COUNTED_PER_HOUR_MAX + 1


def _subscription(endpoint: str, browser: Browser) -> Subscription:
    return Subscription(uuid4(), endpoint, browser.point, browser.auth)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0", "2130706433"])
async def test_no_connection_is_made_to_an_address_that_is_not_public(
    push_service: PushServiceProcess, host: str
) -> None:
    """Otherwise a buyer could have this installation send requests to its own servers."""
    port = push_service.server.server_port
    browser = push_service.browser()
    for address in (f"https://{host}/push", f"https://{host}:{port}/push", f"http://{host}:{port}/push"):
        async with PushServices(push_service.key, contact="mailto:a@b.example") as services:
            outcome = await services.push(_subscription(address, browser), b"{}", ttl_s=1, topic="t")
        assert isinstance(outcome, Gone), outcome
    assert browser.asked == 0


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.1.2.3", False), ("172.16.0.1", False),
        ("192.168.1.1", False), ("169.254.169.254", False), ("100.64.0.1", False), ("0.1.2.3", False),
        ("224.0.0.1", False), ("255.255.255.255", False), ("::1", False), ("::", False), ("fe80::1%eth0", False),
        ("fd00::1", False), ("::ffff:10.0.0.1", False), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False),
        ("2001:0:7f00:1::", False), ("ff02::1", False),
    ],
)  # fmt: skip
def test_addresses(address: str, allowed: bool) -> None:
    assert is_allowed(address) == allowed
    assert is_allowed("127.0.0.1", (ip_network("127.0.0.0/8"),))


async def test_a_name_is_resolved_once_and_the_connection_goes_to_the_address_that_was_checked(
    push_service: PushServiceProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name whose address changes between check and connection finds no gap."""
    asked: list[str] = []

    def resolving(host: str, port: int, *_: object, **__: object) -> list[Any]:
        asked.append(host)
        return [(2, 1, 6, "", ("10.0.0.1", port)), (2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolving)
    browser = push_service.browser()
    path = browser.endpoint.removeprefix(push_service.url)
    push_service.server.server_name = "push.example"
    endpoint = f"http://push.example:{push_service.server.server_port}{path}"
    monkeypatch.setattr(PushServiceProcess, "url", f"http://push.example:{push_service.server.server_port}")
    async with PushServices(push_service.key, contact="mailto:a@b.example", allowed=LOOPBACK) as services:
        outcome = await services.push(_subscription(endpoint, browser), b'{"a": 1}', ttl_s=1, topic="t")
    assert (outcome, asked, browser.pushes) == (Pushed(), ["push.example"], [{"a": 1}])


async def test_no_service_and_a_service_without_tls_are_tried_later(push_service: PushServiceProcess) -> None:
    browser = push_service.browser()
    async with PushServices(push_service.key, contact="mailto:a@b.example", allowed=LOOPBACK) as services:
        for endpoint in ("http://127.0.0.1:1/x", push_service.url.replace("http", "https") + "/x"):
            assert isinstance(await services.push(_subscription(endpoint, browser), b"{}", ttl_s=1, topic="t"), Later)


def test_the_services_own_decryption_is_that_of_the_standard() -> None:
    """The example of RFC 8291, section 5."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key

    private = derive_private_key(
        int.from_bytes(unb64("q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94"), "big"), SECP256R1()
    )
    body = unb64(
        "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPT"
        "pK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
    )
    content = decrypted(body, private=private, auth=unb64("BTBZMqHH6r4Tts7J_aSIgg"))
    assert content == b"When I grow up, I want to be a watermelon"


def test_keys() -> None:
    text = new_vapid_key()
    key = VapidKey.parse(text)
    assert len(text) == 43 and len(key.public) == 87 and text not in repr(key)
    for bad in ("", "x", "A" * 43, "_" * 43, text[:-1], text + "AAAA", "\u00e9" * 43):
        with pytest.raises(VapidKeyInvalid) as caught:
            VapidKey.parse(bad)
        assert not bad or bad not in str(caught.value)
    httpx.Headers(
        {"a": key.authorization(origin="https://x.example", contact="mailto:a@b.example", now_s=int(time.time()))}
    )
