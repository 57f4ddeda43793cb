"""Dispatcher, webhook and analytics worker as processes on Kafka: from an outbox row to a receiver and a figure."""

from __future__ import annotations

import asyncio
import random
from contextlib import ExitStack
from uuid import uuid4

import psycopg
import pytest

from devstack.kafka import KafkaServer
from devstack.servers import RedisServer
from domain import ids
from domain.orders import OrderStatus
from domain.topology import TOPICS
from domain.webhooks import encode_secret, secret_of
from runtime.event_log import open_event_log
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_kafka import make_empty
from tests.fixtures.fix_receiver import WEBHOOK_KEY, Receiver
from tests.workers.making import Maker, later
from tests.workers.test_announcer_process import leave
from tests.workers.worker_process import stop, until, worker_process


async def prepare(url: str) -> None:
    """Empty topics, with the positions of an earlier webhook worker: a new one would begin at the end."""
    await make_empty(url, TOPICS)
    log = open_event_log(url, TOPICS)
    for topic in TOPICS:
        async with log.reader("webhooks", topic.name, range(topic.partitions), begin_at_end=True):
            pass
    await log.close()


@pytest.mark.usefixtures("redis_client")  # empties the server
def test_a_paid_order_is_one_figure_and_one_delivery(
    redis_server: RedisServer, kafka_server: KafkaServer, databases: Databases, receiver: Receiver
) -> None:
    asyncio.run(prepare(kafka_server.url))
    inbox, webhook, salt = receiver.inbox(), ids.new_uuid7(), b"p" * 16
    inbox.secrets.append(encode_secret(secret_of(WEBHOOK_KEY.encode(), webhook, salt)))
    maker = Maker(random.Random(9), uuid4())
    orders = [later(maker.order(user_id=ids.new_uuid7()), OrderStatus.PAID) for _ in range(10)]
    settings = {
        "REDIS_URL": redis_server.url,
        "QUEUE_URL": redis_server.url,
        "EVENT_LOG_URL": kafka_server.url,
        "CATALOGUE_DSN": databases.catalogue_dsn,
        "SHARD_DSNS": ",".join(databases.shard_dsns),
        "ANALYTICS_DSN": databases.analytics_dsn,
        "ANALYTICS_DAYS": "400",
        "WEBHOOK_KEY": WEBHOOK_KEY,
        "WEBHOOK_ADDRESSES_ALLOWED": "127.0.0.0/8",
        "LEASE_MS": "500",
    }
    with ExitStack() as stack:
        catalogue = stack.enter_context(psycopg.connect(databases.catalogue_dsn, autocommit=True))
        figures = stack.enter_context(psycopg.connect(databases.analytics_dsn, autocommit=True))
        catalogue.execute(
            "INSERT INTO webhooks (id, url, description, event_types, salt, notify, created_by)"
            " VALUES (%s, %s, '', '{order.paid}', %s, %s, %s)",
            [webhook, inbox.url, salt, uuid4(), uuid4()],
        )
        for order in orders:
            leave(databases, order)
        names = ("dispatcher", "webhooks", "analytics")
        workers = [stack.enter_context(worker_process(f"workers.{name}", settings)) for name in names]
        until(lambda: len(set(inbox.ids)) == len(orders))
        paid = "SELECT coalesce(sum(paid), 0)::int FROM figures.seconds"
        until(lambda: figures.execute(paid).fetchone() == (len(orders),))
        done = "SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'"
        until(lambda: catalogue.execute(done).fetchone() == (len(orders),))
        assert [stop(worker) for worker in workers] == [0, 0, 0]
    assert sorted(inbox.ids) == sorted(f"{order.order_id}:{order.version}" for order in orders)
