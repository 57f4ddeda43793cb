"""Notification worker and dispatcher as processes: from a row in a shard's outbox to a mailbox, kills included."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import orjson
import psycopg
import pytest
import redis

from devstack.servers import RedisServer, free_port
from domain.mailed_tokens import decode_mailed_token
from domain.notices import Notice, NoticeKind, notice_event, notice_to_user
from domain.topology import DESTINATION_NOTICES, EMAIL_QUEUE, outbox_partition
from runtime.queue.redis_streams import retry_key, stream_key
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_mail import MailServerProcess, token_of
from tests.workers.test_notifications import TOPOLOGY, make_user, tokens
from tests.workers.worker_process import get, stop, until, worker_process

SECRET = "s3cret-of-the-mail-server"


def leave(databases: Databases, notice: Notice) -> None:
    """The outbox row of a notice, in the shard of its user."""
    assert notice.user_id is not None
    with psycopg.connect(databases.shard_dsns[TOPOLOGY.shard_of_user(notice.user_id)], autocommit=True) as connection:
        connection.execute(
            "INSERT INTO outbox (destination, partition, events) VALUES (%s, %s, %s)",
            (DESTINATION_NOTICES, outbox_partition(notice.key), orjson.dumps([notice_event(notice)]).decode()),
        )


def dead_letters(databases: Databases) -> int:
    with psycopg.connect(databases.catalogue_dsn) as connection:
        row = connection.execute("SELECT count(*) FROM dead_letters").fetchone()
        assert row is not None
        return int(row[0])


@contextmanager
def workers(
    *, redis_url: str, databases: Databases, mail_url: str, more: Mapping[str, str] | None = None
) -> Iterator[tuple[int, list[object]]]:
    """Dispatcher and notification worker; the latter's port of /metrics, and both processes. `more` are settings."""
    port = free_port()
    settings = {
        "REDIS_URL": redis_url,
        "CACHE_URL": redis_url.removesuffix("/0") + "/1",
        "QUEUE_URL": redis_url,
        "EVENT_LOG_URL": redis_url,
        "CATALOGUE_DSN": databases.catalogue_dsn,
        "SHARD_DSNS": ",".join(databases.shard_dsns),
        "SMTP_URL": mail_url,
        "NOTICE_KEY": "k" * 32,
        "LEASE_MS": "500",
        **(more or {}),
    }
    with (
        worker_process("workers.dispatcher", settings) as dispatcher,
        worker_process("workers.notifications", settings | {"METRICS_PORT": str(port)}) as notifications,
    ):
        yield port, [dispatcher, notifications]


def test_from_the_outbox_to_the_mailbox(
    redis_client: redis.Redis, redis_server: RedisServer, databases: Databases, mail_server: MailServerProcess
) -> None:
    users = [make_user(databases, f"buyer-{number}@shop.example") for number in range(8)]
    for user_id in users:
        leave(databases, notice_to_user(NoticeKind.VERIFY_EMAIL, user_id))
    with workers(redis_url=redis_server.url, databases=databases, mail_url=mail_server.url) as (port, processes):
        until(lambda: len(mail_server.postbox.letters) == len(users))
        until(lambda: get(f"http://127.0.0.1:{port}/readyz")[0] == 200)
        until(lambda: redis_client.xlen(stream_key(EMAIL_QUEUE)) == 0)
        assert 'flashsale_notices_sent_total{kind="verify_email"} 8.0' in get(f"http://127.0.0.1:{port}/metrics")[1]
        for process in processes:
            assert stop(process) == 0  # type: ignore[arg-type]
    found = {decode_mailed_token(token_of(letter)) for letter in mail_server.postbox.letters}
    assert found == {(user_id, tokens(databases, user_id)["verify_email"]) for user_id in users}
    for dsn in databases.shard_dsns:
        with psycopg.connect(dsn) as connection:
            assert connection.execute("SELECT count(*) FROM outbox").fetchone() == (0,)


def test_killed_with_the_letter_handed_over_it_goes_out_again_the_same(
    redis_client: redis.Redis, redis_server: RedisServer, databases: Databases, mail_server: MailServerProcess
) -> None:
    """SMTP delivers at least once: a second letter is a copy with the same token."""
    user_id = make_user(databases)
    mail_server.postbox.answers = [None]
    mail_server.postbox.take_before_breaking_off = True
    leave(databases, notice_to_user(NoticeKind.PASSWORD_RESET, user_id))
    with workers(redis_url=redis_server.url, databases=databases, mail_url=mail_server.url) as (_, (_, notifications)):
        until(mail_server.postbox.arrived.is_set)
        notifications.kill()  # type: ignore[attr-defined]
    with workers(redis_url=redis_server.url, databases=databases, mail_url=mail_server.url):
        until(lambda: len(mail_server.postbox.letters) == 2)
        until(lambda: redis_client.xlen(stream_key(EMAIL_QUEUE)) == 0)
    first, second = mail_server.postbox.letters
    assert first["Message-ID"] == second["Message-ID"]
    assert token_of(first) == token_of(second)
    assert decode_mailed_token(token_of(second)) == (user_id, tokens(databases, user_id)["password_reset"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [5])
def test_killed_at_random_points_every_notice_arrives(
    seed: int,
    redis_client: redis.Redis,
    redis_server: RedisServer,
    databases: Databases,
    mail_server: MailServerProcess,
) -> None:
    print(f"seed {seed}")  # noqa: T201 - replay with it
    rng = random.Random(seed)
    users = [make_user(databases, f"buyer-{number}@shop.example") for number in range(40)]
    for user_id in users:
        leave(databases, notice_to_user(NoticeKind.VERIFY_EMAIL, user_id))
    letters = mail_server.postbox.letters
    for _ in range(3):
        before = len(letters)
        with workers(redis_url=redis_server.url, databases=databases, mail_url=mail_server.url) as (_, processes):
            until(lambda: len(letters) > before or len(letters) >= len(users))  # noqa: B023 - called at once
            time.sleep(rng.random() * 0.1)
            for process in processes:
                process.kill()  # type: ignore[attr-defined]
    with workers(redis_url=redis_server.url, databases=databases, mail_url=mail_server.url):
        until(lambda: len({letter["To"] for letter in letters}) == len(users))
        until(lambda: redis_client.xlen(stream_key(EMAIL_QUEUE)) + redis_client.zcard(retry_key(EMAIL_QUEUE)) == 0)
    good = {(user_id, tokens(databases, user_id)["verify_email"]) for user_id in users}
    assert {decode_mailed_token(token_of(letter)) for letter in letters} == good
    assert dead_letters(databases) == 0


@pytest.mark.usefixtures("redis_client")
def test_the_mail_servers_password_and_the_tokens_are_in_no_log(
    redis_server: RedisServer,
    databases: Databases,
    mail_server: MailServerProcess,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Nor when all goes wrong: the server offers no encryption, so the login fails again and again."""
    user_id = make_user(databases)
    leave(databases, notice_to_user(NoticeKind.VERIFY_EMAIL, user_id))
    url = f"smtp://mailer:{SECRET}@127.0.0.1:{mail_server.port}"
    with workers(redis_url=redis_server.url, databases=databases, mail_url=url) as (port, _):
        until(lambda: "MailServerAway" in get(f"http://127.0.0.1:{port}/readyz")[1])
        ready = json.loads(get(f"http://127.0.0.1:{port}/readyz")[1])
    with workers(redis_url=redis_server.url, databases=databases, mail_url=mail_server.url):
        until(lambda: mail_server.postbox.letters)
    logged = capfd.readouterr().err
    assert "paused" in logged
    assert SECRET not in logged and SECRET not in json.dumps(ready)
    assert token_of(mail_server.postbox.letters[0]) not in logged
    assert "buyer@" not in logged.lower()
    assert dead_letters(databases) == 0


@pytest.mark.parametrize("wrong", [{"SMTP_URL": "mail.example", "NOTICE_KEY": "k" * 32}, {}, {"NOTICE_KEY": "short"}])
def test_unusable_settings_end_the_process(
    redis_server: RedisServer, databases: Databases, wrong: dict[str, str]
) -> None:
    settings = {"REDIS_URL": redis_server.url, "SHARD_DSNS": ",".join(databases.shard_dsns), **wrong}
    with worker_process("workers.notifications", settings) as process:
        assert process.wait(30) in (1, 2)
