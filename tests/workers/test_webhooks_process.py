"""Dispatcher and webhook worker as processes: from an event in the outbox to a receiver, with the worker killed."""

from __future__ import annotations

import random
import signal
import subprocess
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest
import redis

from devstack.servers import RedisServer, free_port
from domain import ids
from domain.orders import OrderStatus
from domain.topology import TOPIC_ORDERS
from domain.webhooks import encode_secret, secret_of
from runtime.event_log.redis_streams import positions_key
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_receiver import WEBHOOK_KEY, Receiver
from tests.workers.making import Maker, later
from tests.workers.test_announcer_process import leave
from tests.workers.worker_process import get, stop, until, worker_process

RESTING_S = 4
LOOKS_MAX = 8
COMMANDS_PER_S_MAX = 4  # the map of buckets is looked at, too


def test_every_event_arrives_with_the_worker_killed_between_answer_and_note(
    redis_client: redis.Redis, redis_server: RedisServer, databases: Databases, receiver: Receiver
) -> None:
    inbox, webhook, salt = receiver.inbox(), ids.new_uuid7(), b"p" * 16
    inbox.secrets.append(encode_secret(secret_of(WEBHOOK_KEY.encode(), webhook, salt)))
    maker, port = Maker(random.Random(9), uuid4()), free_port()
    orders = [later(maker.order(user_id=ids.new_uuid7()), OrderStatus.PAID) for _ in range(40)]
    settings = {
        "REDIS_URL": redis_server.url,
        "QUEUE_URL": redis_server.url,
        "EVENT_LOG_URL": redis_server.url,
        "CATALOGUE_DSN": databases.catalogue_dsn,
        "SHARD_DSNS": ",".join(databases.shard_dsns),
        "LEASE_MS": "500",
    }
    own = {
        **settings,
        "METRICS_PORT": str(port),
        "WEBHOOK_KEY": WEBHOOK_KEY,
        "WEBHOOK_ADDRESSES_ALLOWED": "127.0.0.0/8",
    }
    with (
        worker_process("workers.dispatcher", settings),
        psycopg.connect(databases.catalogue_dsn, autocommit=True) as catalogue,
    ):
        catalogue.execute(
            "INSERT INTO webhooks (id, url, description, event_types, salt, notify, created_by)"
            " VALUES (%s, %s, '', '{order.paid}', %s, %s, %s)",
            [webhook, inbox.url, salt, uuid4(), uuid4()],
        )
        with worker_process("workers.webhooks", own) as worker:
            until(lambda: redis_client.hexists(positions_key(TOPIC_ORDERS, 15), "webhooks"))

            def kill() -> None:
                if len(inbox.messages) >= 5:
                    worker.kill()

            inbox.before_answer = kill
            for order in orders[:20]:
                leave(databases, order)
            assert worker.wait(30) == -signal.SIGKILL
        inbox.before_answer = lambda: None
        for order in orders[20:]:
            leave(databases, order)
        with worker_process("workers.webhooks", own) as worker:
            until(lambda: len(set(inbox.ids)) == len(orders))
            count = (
                "SELECT count(*) FILTER (WHERE state = 'delivered' AND status = 200), count(*) FROM webhook_deliveries"
            )
            until(lambda: catalogue.execute(count).fetchone() == (len(orders), len(orders)))
            assert get(f"http://127.0.0.1:{port}/readyz")[0] == 200
            assert 'flashsale_webhooks_attempts_total{result="ok"}' in get(f"http://127.0.0.1:{port}/metrics")[1]
            assert stop(worker) == 0
    assert len(inbox.ids) > len(orders)  # at least one was on its way when the worker died
    assert set(inbox.ids) == {f"{order.order_id}:{order.version}" for order in orders}


def clients(client: redis.Redis) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], client.client_list())


def commands_of_clients_since(client: redis.Redis, number: int) -> int:
    """Commands of the clients that connected after the one of this number: other tests may have left some."""
    return sum(int(each["tot-cmds"]) for each in clients(client) if int(each["id"]) > number)


@pytest.mark.parametrize("key", [{}, {"WEBHOOK_KEY": WEBHOOK_KEY}], ids=["without a key", "without webhooks"])
def test_a_worker_without_work_is_ready_and_rests(
    redis_client: redis.Redis, redis_server: RedisServer, databases: Databases, key: dict[str, str]
) -> None:
    port = free_port()
    settings = {
        "REDIS_URL": redis_server.url,
        "EVENT_LOG_URL": redis_server.url,
        "CATALOGUE_DSN": databases.catalogue_dsn,
        "METRICS_PORT": str(port),
        **key,
    }
    others = max(int(client["id"]) for client in clients(redis_client))
    with worker_process("workers.webhooks", settings) as worker:
        until(lambda: get(f"http://127.0.0.1:{port}/readyz")[0] == 200)
        if key:
            until(lambda: redis_client.hexists(positions_key("sales.v1", 15), "webhooks"))
        assert redis_client.xlen("log:{orders.v1.0}:records") == 0
        spent: list[int] = []
        while not spent or (spent[-1] > COMMANDS_PER_S_MAX * RESTING_S and len(spent) < LOOKS_MAX):
            before = commands_of_clients_since(redis_client, others)
            with pytest.raises(subprocess.TimeoutExpired):
                worker.wait(RESTING_S)
            spent.append(commands_of_clients_since(redis_client, others) - before)
        assert spent[-1] <= COMMANDS_PER_S_MAX * RESTING_S, spent
        assert stop(worker) == 0
