"""Dispatcher, announcer and notification worker as processes: from an event in the outbox to a letter, with kills."""

from __future__ import annotations

import random
from uuid import uuid4

import orjson
import psycopg
import pytest
import redis

from devstack.servers import RedisServer, free_port
from domain.events import order_event
from domain.orders import OrderEntry, OrderStatus
from domain.topology import DESTINATION_ORDER_EVENTS, EMAIL_QUEUE, TOPIC_PAYMENTS, outbox_partition
from runtime.event_log.redis_streams import positions_key
from runtime.queue.redis_streams import stream_key
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_mail import MailServerProcess, text_of
from tests.fixtures.fix_push import VAPID_KEY, PushServiceProcess
from tests.workers.making import Maker, later
from tests.workers.test_notifications import TOPOLOGY, make_user
from tests.workers.test_notifications_process import workers
from tests.workers.worker_process import get, stop, until, worker_process


def leave(databases: Databases, order: OrderEntry) -> None:
    """The outbox row of an order's event, as the shard writer leaves it."""
    with psycopg.connect(databases.shard_dsns[TOPOLOGY.shard_of_user(order.user_id)], autocommit=True) as connection:
        connection.execute(
            "INSERT INTO outbox (destination, partition, events) VALUES (%s, %s, %s)",
            (
                DESTINATION_ORDER_EVENTS,
                outbox_partition(str(order.user_id)),
                orjson.dumps([order_event(order)]).decode(),
            ),
        )


def test_from_an_event_to_a_letter_with_the_announcer_killed_on_the_way(
    redis_client: redis.Redis,
    redis_server: RedisServer,
    databases: Databases,
    mail_server: MailServerProcess,
) -> None:
    maker = Maker(random.Random(7), uuid4())
    buyers = {make_user(databases, f"buyer-{number}@shop.example"): number for number in range(20)}
    orders = [later(maker.order(user_id=buyer), OrderStatus.EXPIRED) for buyer in buyers]
    strangers = [later(maker.order(shard=number % 4), OrderStatus.EXPIRED) for number in range(100)]
    port = free_port()
    settings = {
        "REDIS_URL": redis_server.url,
        "QUEUE_URL": redis_server.url,
        "EVENT_LOG_URL": redis_server.url,
        "SHARD_DSNS": ",".join(databases.shard_dsns),
        "LEASE_MS": "500",
        "METRICS_PORT": str(port),
    }
    letters = mail_server.postbox.letters
    with workers(redis_url=redis_server.url, databases=databases, mail_url=mail_server.url):
        with worker_process("workers.announcer", settings) as announcer:
            until(lambda: get(f"http://127.0.0.1:{port}/readyz")[0] == 200)  # from now on, no event is missed
            for order in (*strangers, *orders[:10]):
                leave(databases, order)
            until(lambda: letters)
            announcer.kill()
        for order in orders[10:]:
            leave(databases, order)
        with worker_process("workers.announcer", settings) as announcer:
            until(lambda: len({letter["To"] for letter in letters}) == len(buyers))
            until(lambda: redis_client.xlen(stream_key(EMAIL_QUEUE)) == 0)
            until(lambda: get(f"http://127.0.0.1:{port}/readyz")[0] == 200)
            assert "flashsale_announcer_lag_records" in get(f"http://127.0.0.1:{port}/metrics")[1]
            assert stop(announcer) == 0
    assert len(letters) == len(buyers)  # once each
    assert all("the hold ran out" in text_of(letter) for letter in letters)


def test_from_an_event_to_a_push_while_the_mail_server_is_away(
    redis_client: redis.Redis,
    redis_server: RedisServer,
    databases: Databases,
    mail_server: MailServerProcess,
    push_service: PushServiceProcess,
) -> None:
    """And the other way round: no channel waits for the other."""
    buyer, browser = make_user(databases), push_service.browser()
    with psycopg.connect(databases.shard_dsns[TOPOLOGY.shard_of_user(buyer)], autocommit=True) as connection:
        connection.execute(
            "INSERT INTO push_subscriptions (id, user_id, endpoint, p256dh, auth) VALUES (%s, %s, %s, %s, %s)",
            (uuid4(), buyer, browser.endpoint, browser.point, browser.auth),
        )
    settings = {
        "REDIS_URL": redis_server.url,
        "QUEUE_URL": redis_server.url,
        "EVENT_LOG_URL": redis_server.url,
        "SHARD_DSNS": ",".join(databases.shard_dsns),
        "LEASE_MS": "500",
        "VAPID_PUBLIC_KEY": push_service.key.public,
    }
    push = {"VAPID_KEY": VAPID_KEY, "PUSH_ADDRESSES_ALLOWED": "127.0.0.0/8"}
    maker = Maker(random.Random(8), uuid4())
    with (
        workers(redis_url=redis_server.url, databases=databases, mail_url=mail_server.url, more=push) as (port, _),
        worker_process("workers.announcer", settings),
    ):
        for channel in ("email", "push"):
            until(lambda: redis_client.hexists(positions_key(TOPIC_PAYMENTS, 15), f"announcer.{channel}"))  # noqa: B023
        mail_server.stop()
        leave(databases, later(maker.order(user_id=buyer), OrderStatus.PAID))
        until(lambda: len(browser.pushes) == 1)
        assert browser.pushes[0]["title"] == "Order paid"
        mail_server.start()
        push_service.silent.set()
        leave(databases, later(maker.order(user_id=buyer), OrderStatus.EXPIRED))
        until(lambda: len(mail_server.postbox.letters) == 2)
        push_service.silent.clear()
        until(lambda: len(browser.pushes) == 2)
        assert 'flashsale_pushes_sent_total{kind="order_paid"} 1.0' in get(f"http://127.0.0.1:{port}/metrics")[1]


@pytest.mark.parametrize("wrong", [{"SHARD_DSNS": "postgresql://x"}, {"EVENT_LOG_URL": "gopher://x"}])
def test_unusable_settings_end_the_process(
    redis_server: RedisServer, databases: Databases, wrong: dict[str, str]
) -> None:
    settings = {"REDIS_URL": redis_server.url, "SHARD_DSNS": ",".join(databases.shard_dsns), **wrong}
    with worker_process("workers.announcer", settings) as process:
        assert process.wait(30) in (1, 2)
