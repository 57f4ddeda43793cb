"""Notices to letters on real servers: the result of each answer of a mail server, and no letter twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from email.message import EmailMessage
from uuid import UUID

import psycopg
import pytest
import redis
from pydantic import SecretStr

from devstack.servers import RedisServer
from domain import ids
from domain.mailed_tokens import SECRET_BYTES, decode_mailed_token, encode_mailed_token, secret_hash
from domain.notices import (
    ORDER_KINDS,
    Channel,
    Notice,
    NoticeKind,
    notice_event,
    notice_of_left_address,
    notice_of_order,
    notice_to_address,
    notice_to_user,
)
from domain.topology import EMAIL_QUEUE, Topology, bucket_of_user
from notices.language import languages
from notices.letters import Recipient, SenderInvalid, Writer
from notices.samples import sample
from runtime.dead_letters import Replay, open_dead_letters, replay
from runtime.postgres.pool import postgres_pool
from runtime.process.service import Service
from runtime.process.settings import load_settings
from runtime.queue import Queue, RetryPolicy, open_queue
from runtime.redis.client import redis_client as new_client
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_mail import PASSWORD, USER, MailServerProcess, text_of, token_of
from workers.notifications import accounts
from workers.notifications.accounts import Accounts
from workers.notifications.mailed_secrets import MailedSecrets
from workers.notifications.records import COUNTED_PER_HOUR_MAX, Records
from workers.notifications.smtp import MailServer, MailServerAway, SmtpSession, SmtpUrlInvalid
from workers.notifications.worker import LETTERS_MAX, PostOffice, Sender
from workers.shards import Shards

WAIT_S = 20.0
EMAIL = "Buyer@shop.example"
TOPOLOGY = Topology()


def make_user(databases: Databases, email: str = EMAIL) -> UUID:
    """An account as registration leaves it."""
    user_id = ids.new_uuid7()
    folded = email.lower()
    with psycopg.connect(databases.shard_dsns[TOPOLOGY.shard_of_user(user_id)], autocommit=True) as connection:
        connection.execute(
            "INSERT INTO users (id, bucket, email, email_folded, name, password_hash, role) "
            "VALUES (%s, %s, %s, %s, 'Ada', 'x', 'buyer')",
            (user_id, bucket_of_user(user_id), email, folded),
        )
    with psycopg.connect(databases.shard_dsns[TOPOLOGY.shard_of_address(folded)], autocommit=True) as connection:
        connection.execute(
            "INSERT INTO login_index (email_folded, user_id, confirmed) VALUES (%s, %s, true)", (folded, user_id)
        )
    return user_id


def prefer(databases: Databases, user_id: UUID, *, language: str | None = None, email_off: Sequence[str] = ()) -> None:
    """The account's choices."""
    with psycopg.connect(databases.shard_dsns[TOPOLOGY.shard_of_user(user_id)], autocommit=True) as connection:
        connection.execute(
            "INSERT INTO notice_preferences (user_id, language, email_off) VALUES (%s, %s, %s)",
            (user_id, language, list(email_off)),
        )


def tokens(databases: Databases, user_id: UUID) -> dict[str, bytes]:
    """Hashes of the user's newest tokens that are good, by purpose."""
    with psycopg.connect(databases.shard_dsns[TOPOLOGY.shard_of_user(user_id)]) as connection:
        rows = connection.execute(
            "SELECT purpose, secret_hash FROM mailed_links "
            "WHERE user_id = %s AND used_at IS NULL AND expires_at > now() ORDER BY notice_id",
            (user_id,),
        ).fetchall()
    return {purpose: bytes(secret_hash) for purpose, secret_hash in rows}


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - looks at a server
            await asyncio.sleep(0.02)


class Setup:
    """A sender and its parts."""

    def __init__(self, url: str, databases: Databases, mail_url: str) -> None:
        self.queue: Queue = open_queue(url, TOPOLOGY.queues)
        self.letters = open_dead_letters(SecretStr(databases.catalogue_dsn))
        self.cache = new_client(url.removesuffix("/0") + "/1")
        self.shards = [postgres_pool(SecretStr(dsn), size_max=2) for dsn in databases.shard_dsns]
        self.service = Service("notifications", load_settings({}))
        self.writer = Writer(sender="Shop <no-reply@shop.example>", link_url="https://shop.example/")
        self.office = PostOffice(
            Accounts(Shards(self.shards), TOPOLOGY),
            Records(self.cache),
            MailedSecrets(SecretStr("k" * 32)),
            self.writer,
            MailServer.from_url(SecretStr(mail_url)),
        )

    @asynccontextmanager
    async def running(self, delays_ms: tuple[int, ...] = (10, 20), *, senders: int = 1) -> AsyncIterator[Sender]:
        self.service.stopping.clear()
        made = [
            Sender(
                queue=self.queue,
                letters=self.letters,
                office=self.office,
                service=self.service,
                policy=RetryPolicy(delays_ms),
            )
            for _ in range(senders)
        ]
        tasks = [asyncio.create_task(sender.run()) for sender in made]
        try:
            yield made[0]
            assert not any(task.done() for task in tasks)
        finally:
            self.service.stopping.set()
            async with asyncio.timeout(WAIT_S):
                await asyncio.gather(*tasks)

    async def tell(self, notice: Notice) -> None:
        await self.queue.publish(EMAIL_QUEUE, json.dumps(notice_event(notice)).encode(), message_id=str(notice.id))

    async def settled(self) -> None:
        """Nothing waits any more."""
        assert await self.queue.barrier(EMAIL_QUEUE, wait_s=WAIT_S)

    async def dead(self) -> list[str]:
        letters, _ = await self.letters.list(EMAIL_QUEUE)
        return [letter.reason for letter in letters]


@pytest.fixture
async def setup(
    redis_client: redis.Redis,
    redis_server: RedisServer,
    databases: Databases,
    mail_server: MailServerProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Setup]:
    assert redis_client.dbsize() == 0
    monkeypatch.setattr("workers.notifications.worker.RECEIVE_S", 0.05)  # senders stop sooner
    made = Setup(redis_server.url, databases, mail_server.url)
    for pool in made.shards:
        await pool.open()
    yield made
    for pool in made.shards:
        await pool.close()
    await made.queue.close()
    await made.letters.close()
    await made.cache.aclose()


async def test_an_address_that_was_left_gets_a_link_that_undoes_the_change(
    setup: Setup, databases: Databases, mail_server: MailServerProcess
) -> None:
    left = "left@shop.example"
    user_id = make_user(databases)  # has another address by now
    async with setup.running():
        await setup.tell(notice_of_left_address(user_id, left))
        await setup.settled()
    (letter,) = mail_server.postbox.letters
    assert (letter["To"], letter["Subject"]) == (left, "Your e-mail address was changed")
    assert f"https://shop.example/account/undo-email-change#{token_of(letter)}" in text_of(letter)
    assert "good for 7 days" in text_of(letter) and EMAIL.lower() not in letter.as_string().lower()
    assert decode_mailed_token(token_of(letter)) == (user_id, tokens(databases, user_id)["email_changed"])
    assert await setup.dead() == []


async def test_a_letter_has_a_link_whose_token_is_good_and_stored_as_a_hash_only(
    setup: Setup, databases: Databases, mail_server: MailServerProcess, redis_client: redis.Redis
) -> None:
    user_id = make_user(databases)
    async with setup.running():
        await setup.tell(notice_to_user(NoticeKind.VERIFY_EMAIL, user_id))
        await setup.settled()
    (letter,) = mail_server.postbox.letters
    assert letter["To"] == EMAIL
    assert letter["From"] == "Shop <no-reply@shop.example>"
    assert letter["Subject"] == "Confirm your e-mail address"
    assert letter["Auto-Submitted"] == "auto-generated"
    token = token_of(letter)
    assert f"https://shop.example/account/verify-email#{token}" in text_of(letter)
    html = letter.get_body(("html",))
    assert html is not None and f'href="https://shop.example/account/verify-email#{token}"' in html.get_content()
    decoded = decode_mailed_token(token)
    assert decoded is not None
    assert decoded == (user_id, tokens(databases, user_id)["verify_email"])
    # The record of the notice says no more than that it was sent.
    with redis.Redis(port=redis_client.get_connection_kwargs()["port"], db=1) as cache:
        assert [cache.get(key) for key in cache.scan_iter("flashsale:notice:*")] == [b"sent"]
        assert all(0 < cache.ttl(key) <= 86_400 for key in cache.scan_iter("flashsale:notice:*"))


async def test_every_kind_of_letter(setup: Setup, databases: Databases, mail_server: MailServerProcess) -> None:
    user_id = make_user(databases)
    async with setup.running():
        for kind in set(NoticeKind) - set(ORDER_KINDS):
            is_left = kind is NoticeKind.EMAIL_CHANGED
            left = notice_of_left_address(user_id, "left@shop.example")
            await setup.tell(left if is_left else notice_to_user(kind, user_id))
        await setup.settled()
    letters = {letter["Subject"]: letter for letter in mail_server.postbox.letters}
    assert set(letters) == {
        "Confirm your e-mail address",
        "Reset your password",
        "Your password was changed",
        "Your e-mail address was changed",
        "A webhook was disabled",
    }
    assert "24 hours" in text_of(letters["Confirm your e-mail address"])
    assert "30 minutes" in text_of(letters["Reset your password"])
    assert "#" not in text_of(letters["Your password was changed"])
    assert set(tokens(databases, user_id)) == {"verify_email", "password_reset", "email_changed"}
    for letter in letters.values():
        assert all(len(line) < 998 for line in letter.as_bytes().split(b"\n"))
        assert "$" not in letter.as_string()


def news(event_id: str, user_id: UUID, kind: NoticeKind = NoticeKind.ORDER_EXPIRED) -> Notice:
    """The notice of an order's event, for e-mail."""
    order = sample(kind).order
    assert order is not None
    return notice_of_order(kind, user_id, order, event_id=f"{user_id}:{event_id}:{kind}", channel=Channel.EMAIL)


async def test_letters_of_orders_are_in_the_language_of_the_account(
    setup: Setup, databases: Databases, mail_server: MailServerProcess
) -> None:
    german, english = make_user(databases, "de@shop.example"), make_user(databases, "en@shop.example")
    prefer(databases, german, language="de")
    async with setup.running():
        for user_id in (german, english):
            for kind in ORDER_KINDS:
                await setup.tell(news(str(user_id), user_id, kind))
            await setup.tell(notice_to_user(NoticeKind.PASSWORD_CHANGED, user_id))
        await setup.tell(notice_of_left_address(german, "left@shop.example"))
        await setup.settled()
    subjects = {(letter["To"], letter["Subject"]) for letter in mail_server.postbox.letters}
    for user, code in (("de@shop.example", "de"), ("en@shop.example", "en")):
        for kind in (*ORDER_KINDS, NoticeKind.PASSWORD_CHANGED):
            assert (user, languages()[code].words["subjects"][kind]) in subjects
    assert ("left@shop.example", "Ihre E-Mail-Adresse wurde geändert") in subjects
    assert len(subjects) == len(mail_server.postbox.letters) == 2 * (len(ORDER_KINDS) + 1) + 1


async def test_what_a_buyer_switched_off_is_not_sent(
    setup: Setup, databases: Databases, mail_server: MailServerProcess
) -> None:
    """Also when it was switched off while the notice was under way. Letters of security always go out."""
    user_id = make_user(databases)
    prefer(databases, user_id, email_off=[*ORDER_KINDS, "password_changed"])
    async with setup.running():
        for kind in ORDER_KINDS:
            await setup.tell(news("e", user_id, kind))
        await setup.tell(notice_to_user(NoticeKind.PASSWORD_CHANGED, user_id))
        await setup.settled()
    assert [letter["Subject"] for letter in mail_server.postbox.letters] == ["Your password was changed"]


async def test_a_buyer_cannot_fill_a_mailbox(
    setup: Setup, databases: Databases, mail_server: MailServerProcess
) -> None:
    """Ordering and cancelling again and again: the address may be a stranger's. Money is told of all the same."""
    user_id, other = make_user(databases), make_user(databases, "other@shop.example")
    async with setup.running():
        for number in range(COUNTED_PER_HOUR_MAX + 5):
            await setup.tell(news(f"{number}", user_id, NoticeKind.ORDER_CANCELLED))
        await setup.settled()
        assert len(mail_server.postbox.letters) == COUNTED_PER_HOUR_MAX
        for user in (user_id, other):
            await setup.tell(news("paid", user, NoticeKind.ORDER_PAID))
        await setup.tell(news("expired", other))
        await setup.settled()
    assert len(mail_server.postbox.letters) == COUNTED_PER_HOUR_MAX + 3


async def test_copies_of_a_notice_in_two_senders_hands_are_sent_once(
    setup: Setup, databases: Databases, mail_server: MailServerProcess
) -> None:
    """The announcer repeats its last batch after a crash: the copies come close together."""
    notices = [news(str(number), make_user(databases, f"b{number}@x.example")) for number in range(10)]
    for notice in notices:
        await setup.tell(notice)
        await setup.tell(notice)
    async with setup.running(senders=2):
        await setup.settled()
    assert len(mail_server.postbox.letters) == len({letter["To"] for letter in mail_server.postbox.letters}) == 10


async def test_by_address_only_who_has_it_gets_a_letter(
    setup: Setup, databases: Databases, mail_server: MailServerProcess
) -> None:
    make_user(databases)
    async with setup.running():
        for address in ("nobody@shop.example", EMAIL.lower(), "buyer@shop.example.other.example"):
            await setup.tell(notice_to_address(NoticeKind.PASSWORD_RESET, address))
        await setup.settled()
    assert [letter["To"] for letter in mail_server.postbox.letters] == [EMAIL]
    assert await setup.dead() == []


async def test_an_entry_that_was_left_leads_to_nobody(
    setup: Setup, databases: Databases, mail_server: MailServerProcess
) -> None:
    user_id = make_user(databases)
    with psycopg.connect(databases.shard_dsns[TOPOLOGY.shard_of_user(user_id)], autocommit=True) as connection:
        connection.execute("UPDATE users SET email = 'new@x.example', email_folded = 'new@x.example'")
    async with setup.running():
        await setup.tell(notice_to_address(NoticeKind.PASSWORD_RESET, EMAIL.lower()))
        await setup.settled()
    assert mail_server.postbox.letters == []
    assert tokens(databases, user_id) == {}


async def test_a_shard_that_is_away_delays_no_other_account(
    setup: Setup, databases: Databases, mail_server: MailServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notice of its account waited without end in a sender's hands, and everybody's mail behind it."""
    monkeypatch.setattr("workers.shards.AWAY_S", 0.2)
    monkeypatch.setattr("workers.shards.CONNECTION_S", 0.2)
    monkeypatch.setattr("workers.notifications.worker.SHARD_AWAY_DELAY_MS", 50)
    away, other = make_user(databases), make_user(databases, "other@shop.example")
    shard = TOPOLOGY.shard_of_user(away)
    while TOPOLOGY.shard_of_user(other) == shard:
        other = make_user(databases, f"{other}@shop.example")
    good, setup.shards[shard] = setup.shards[shard], postgres_pool(SecretStr("postgresql://x@127.0.0.1:1/x"))
    await setup.shards[shard].open()
    setup.office = replace(setup.office, accounts=Accounts(Shards(setup.shards), TOPOLOGY))
    async with setup.running():
        for _ in range(3 * LETTERS_MAX):
            await setup.tell(notice_to_user(NoticeKind.PASSWORD_CHANGED, away))
        await setup.tell(notice_to_user(NoticeKind.PASSWORD_RESET, other))
        await until(lambda: mail_server.postbox.letters)
        assert decode_mailed_token(token_of(mail_server.postbox.letters[0])) is not None
        assert not setup.service.is_ready and f"shard {shard}" in str(setup.service.checks)
        bad, setup.shards[shard] = setup.shards[shard], good
        await until(lambda: len(mail_server.postbox.letters) == 3 * LETTERS_MAX + 1)
        await setup.settled()
        assert setup.service.is_ready
    await bad.close()
    assert await setup.dead() == []


async def test_a_notice_that_comes_twice_is_sent_once(
    setup: Setup, databases: Databases, mail_server: MailServerProcess
) -> None:
    notice = notice_to_user(NoticeKind.PASSWORD_RESET, make_user(databases))
    async with setup.running():
        for _ in range(3):
            await setup.tell(notice)
        await setup.settled()
    assert len(mail_server.postbox.letters) == 1


async def test_a_newer_token_leaves_the_older_valid(
    setup: Setup, databases: Databases, mail_server: MailServerProcess
) -> None:
    user_id = make_user(databases)
    oldest = notice_to_user(NoticeKind.PASSWORD_RESET, user_id)
    await asyncio.sleep(0.002)  # ids are ordered by the millisecond
    older = notice_to_user(NoticeKind.PASSWORD_RESET, user_id)
    await asyncio.sleep(0.002)
    newer = notice_to_user(NoticeKind.PASSWORD_RESET, user_id)
    await asyncio.sleep(0.002)
    async with setup.running():
        await setup.tell(newer)
        await setup.settled()
        await setup.tell(older)
        await setup.settled()
        assert len(mail_server.postbox.letters) == 2
        first = decode_mailed_token(token_of(mail_server.postbox.letters[0]))
        assert first == (user_id, tokens(databases, user_id)["password_reset"])
        dsn = databases.shard_dsns[TOPOLOGY.shard_of_user(user_id)]
        with psycopg.connect(dsn, autocommit=True) as connection:
            assert connection.execute("SELECT count(*) FROM mailed_links WHERE used_at IS NULL").fetchone() == (2,)
            # A reset voids them all, and a notice of before it comes too late.
            connection.execute("UPDATE mailed_links SET used_at = now()")
        await setup.tell(oldest)
        await setup.settled()
    assert len(mail_server.postbox.letters) == 2 and tokens(databases, user_id) == {}


async def test_the_number_of_valid_tokens_is_bounded(
    setup: Setup, databases: Databases, mail_server: MailServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "LINKS_MAX", 2)
    user_id = make_user(databases)
    async with setup.running():
        for _ in range(4):
            await setup.tell(notice_to_user(NoticeKind.PASSWORD_RESET, user_id))
            await setup.settled()
    with psycopg.connect(databases.shard_dsns[TOPOLOGY.shard_of_user(user_id)]) as connection:
        rows = connection.execute("SELECT secret_hash FROM mailed_links ORDER BY notice_id").fetchall()
    sent = [decode_mailed_token(token_of(letter)) for letter in mail_server.postbox.letters]
    assert [(user_id, bytes(row[0])) for row in rows] == sent[-2:]


async def test_a_verified_address_is_asked_no_more(
    setup: Setup, databases: Databases, mail_server: MailServerProcess
) -> None:
    user_id = make_user(databases)
    with psycopg.connect(databases.shard_dsns[TOPOLOGY.shard_of_user(user_id)], autocommit=True) as connection:
        connection.execute("UPDATE users SET verified_email_folded = email_folded")
    async with setup.running():
        await setup.tell(notice_to_user(NoticeKind.VERIFY_EMAIL, user_id))
        await setup.settled()
    assert mail_server.postbox.letters == []
    assert tokens(databases, user_id) == {}


async def test_4xx_is_tried_again_with_the_same_letter(
    setup: Setup, databases: Databases, mail_server: MailServerProcess
) -> None:
    user_id = make_user(databases)
    mail_server.postbox.answers = ["451 greylisted", "452 no room"]
    async with setup.running():
        await setup.tell(notice_to_user(NoticeKind.PASSWORD_RESET, user_id))
        await setup.settled()
    (letter,) = mail_server.postbox.letters
    assert decode_mailed_token(token_of(letter)) == (user_id, tokens(databases, user_id)["password_reset"])
    assert await setup.dead() == []


async def test_4xx_for_ever_ends_in_the_dead_letters(
    setup: Setup, databases: Databases, mail_server: MailServerProcess, redis_client: redis.Redis
) -> None:
    user_id = make_user(databases)
    mail_server.postbox.answers = ["451 greylisted"] * 3
    async with setup.running():
        notice = notice_to_user(NoticeKind.PASSWORD_RESET, user_id)
        await setup.tell(notice)
        await setup.settled()
        assert await setup.dead() == ["451 greylisted"]
        ((letter,), _) = await setup.letters.list(EMAIL_QUEUE)
        assert [failure.reason for failure in letter.history] == ["451 greylisted"] * 3
        # A reader of dead letters finds no secret there, and none is kept anywhere else.
        assert b"token" not in letter.body and letter.message_id == str(notice.id)
        with redis.Redis(port=redis_client.get_connection_kwargs()["port"], db=1) as cache:
            assert list(cache.scan_iter("flashsale:notice:*")) == []
        assert await replay(setup.letters, setup.queue, letter.id) is Replay.DONE
        await setup.settled()
    assert len(mail_server.postbox.letters) == 1


async def test_no_server_holds_the_secret_of_a_link(
    setup: Setup, databases: Databases, mail_server: MailServerProcess, redis_client: redis.Redis
) -> None:
    """Whoever reads the append-only file, a queue or a table cannot reset a password."""
    user_id = make_user(databases)
    notice = notice_to_user(NoticeKind.PASSWORD_RESET, user_id)
    mail_server.postbox.answers = ["451 greylisted"]
    async with setup.running(delays_ms=(600_000,)):
        await setup.tell(notice)
        await until(lambda: not mail_server.postbox.answers)
        await until(lambda: tokens(databases, user_id))
    secret = setup.office.secrets.of(notice.id)
    assert tokens(databases, user_id)["password_reset"] == secret_hash(secret)
    forms = (secret, secret.hex().encode(), encode_mailed_token(user_id, secret).encode())
    for database in (0, 1):
        with redis.Redis(port=redis_client.get_connection_kwargs()["port"], db=database) as client:
            client.config_set("rdbcompression", "no")
            dumps = [client.dump(key) or b"" for key in client.scan_iter()]
            assert not [dump for dump in dumps if any(form in dump for form in forms)]


@pytest.mark.parametrize("place", ["recipient", "data"])
async def test_5xx_is_given_up_at_once_and_delays_no_other(
    place: str, setup: Setup, databases: Databases, mail_server: MailServerProcess
) -> None:
    user_id, other = make_user(databases), make_user(databases, "other@shop.example")
    # It repeats the address, which a dead letter would keep when the account is erased.
    answer = f"550 no such mailbox: <{EMAIL}>"
    if place == "recipient":
        mail_server.postbox.recipient_answers = {EMAIL: answer}
    else:
        mail_server.postbox.answers = [answer]
    async with setup.running():
        for receiver in (user_id, other):
            await setup.tell(notice_to_user(NoticeKind.VERIFY_EMAIL, receiver))
        await setup.settled()
    assert await setup.dead() == ["550 no such mailbox: <(address)>"]
    assert [letter["To"] for letter in mail_server.postbox.letters] == ["other@shop.example"]


async def test_answers_that_are_not_utf_8_are_given_up_and_end_no_process(setup: Setup, databases: Databases) -> None:
    """A reason with such bytes was no text for the queue or the dead letters: each process ended at this notice."""
    user_id, other = make_user(databases), make_user(databases, "other@shop.example")
    answers = {b"MAIL": [], b"RCPT": ["450 später".encode("latin-1"), "550 Empfänger unbekannt".encode("latin-1")]}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 shop\r\n")
        while line := await reader.readline():
            odd = answers.get(line[:4].upper())
            if line[:4].upper() == b"DATA":
                writer.write(b"354 go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
            writer.write((odd.pop(0) if odd else b"250 ok") + b"\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    setup.office = PostOffice(
        setup.office.accounts,
        setup.office.records,
        setup.office.secrets,
        setup.writer,
        MailServer.from_url(SecretStr(f"smtp://127.0.0.1:{port}")),
    )
    async with setup.running():
        for receiver in (user_id, other):
            await setup.tell(notice_to_user(NoticeKind.VERIFY_EMAIL, receiver))
        await setup.settled()
    server.close()
    assert await setup.dead() == ["550 Empf\ufffdnger unbekannt"]


async def test_odd_addresses_delay_no_other(setup: Setup, databases: Databases, mail_server: MailServerProcess) -> None:
    """All of these can be registered; the mail server decides on each, and the letters after them go out."""
    odd = [
        "a..b@x.example",
        ".a@x.example",
        "a.@x.example",
        "!#$%&'*+/=?^_`{|}~-@x.example",
        "-@b--c.example",
        "no address",
    ]
    users = [make_user(databases, email) for email in (*odd, EMAIL)]
    async with setup.running():
        for user_id in users:
            await setup.tell(notice_to_user(NoticeKind.VERIFY_EMAIL, user_id))
        await setup.settled()
    arrived = {str(letter["To"]) for letter in mail_server.postbox.letters}
    assert arrived == {*odd, EMAIL} - {"no address"}
    assert len(await setup.dead()) == 1


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff", b'{"id": 1}'])
async def test_malformed_notices_go_to_the_dead_letters(setup: Setup, body: bytes) -> None:
    async with setup.running():
        await setup.queue.publish(EMAIL_QUEUE, body, message_id="x")
        await setup.settled()
    assert len(await setup.dead()) == 1


async def test_a_server_away_is_waited_for_and_costs_no_attempt(
    setup: Setup, databases: Databases, mail_server: MailServerProcess
) -> None:
    user_id = make_user(databases)
    mail_server.stop()
    async with setup.running(delays_ms=()) as sender:
        proof = asyncio.create_task(sender.prove())
        await setup.tell(notice_to_user(NoticeKind.VERIFY_EMAIL, user_id))
        await until(lambda: setup.service.checks.get("mail server", (True, ""))[1] == "MailServerAway")
        assert not setup.service.is_ready
        mail_server.start()
        await setup.settled()
        async with asyncio.timeout(WAIT_S):
            await proof
        assert setup.service.is_ready
    assert len(mail_server.postbox.letters) == 1


@pytest.mark.parametrize("answer", ["550 we do not know you", "421 going away"])
async def test_a_server_that_takes_nothing_from_us_burns_no_letters(
    answer: str, setup: Setup, databases: Databases, mail_server: MailServerProcess
) -> None:
    user_id = make_user(databases)
    mail_server.postbox.sender_answer = answer
    async with setup.running(delays_ms=()):
        await setup.tell(notice_to_user(NoticeKind.VERIFY_EMAIL, user_id))
        await until(lambda: setup.service.checks.get("mail server", (True, ""))[1] == "MailServerAway")
        mail_server.postbox.sender_answer = None
        await setup.settled()
    assert len(mail_server.postbox.letters) == 1
    assert await setup.dead() == []


async def test_a_server_that_goes_silent_with_the_letter_in_its_hands(
    setup: Setup, databases: Databases, mail_server: MailServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may have it or not: the letter goes out again with the same Message-ID and token."""
    monkeypatch.setattr("workers.notifications.smtp.LETTER_S_MAX", 0.3)
    user_id = make_user(databases)
    mail_server.postbox.answers = [None]
    mail_server.postbox.take_before_breaking_off = True
    async with setup.running():
        await setup.tell(notice_to_user(NoticeKind.PASSWORD_RESET, user_id))
        await setup.settled()
    first, second = mail_server.postbox.letters
    assert first["Message-ID"] == second["Message-ID"]
    assert token_of(first) == token_of(second)
    assert decode_mailed_token(token_of(second)) == (user_id, tokens(databases, user_id)["password_reset"])


async def test_a_server_that_says_nothing_at_all_is_away() -> None:
    silent = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    server = MailServer.from_url(SecretStr(f"smtp://127.0.0.1:{port}"))
    async with SmtpSession(server, command_s_max=0.2) as session:
        with pytest.raises(MailServerAway):
            await session.open()
    silent.close()


async def test_a_password_never_travels_in_the_clear(mail_server: MailServerProcess) -> None:
    """The server offers a login and no encryption: then there is no login."""
    mail_server.stop()
    mail_server.options = {"auth_require_tls": False, "authenticator": mail_server.postbox.check_login}
    mail_server.start()
    server = MailServer.from_url(
        SecretStr(f"smtp://{USER}:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{mail_server.port}")
    )
    async with SmtpSession(server) as session:
        with pytest.raises(MailServerAway):
            await session.open()
    assert mail_server.postbox.logins == []


async def test_a_letter_that_a_record_lost_is_the_same_letter(
    setup: Setup, databases: Databases, mail_server: MailServerProcess
) -> None:
    """The cache forgot that it was sent: a second mail has the same token and Message-ID, so mailboxes drop it."""
    user_id = make_user(databases)
    notice = notice_to_user(NoticeKind.PASSWORD_RESET, user_id)
    async with setup.running():
        await setup.tell(notice)
        await setup.settled()
        await setup.cache.flushdb()
        await setup.tell(notice)
        await setup.settled()
    first, second = mail_server.postbox.letters
    assert first["Message-ID"] == second["Message-ID"] and token_of(first) == token_of(second)
    assert decode_mailed_token(token_of(second)) == (user_id, tokens(databases, user_id)["password_reset"])


async def test_a_used_token_is_not_made_good_by_a_redelivery(
    setup: Setup, databases: Databases, mail_server: MailServerProcess
) -> None:
    user_id = make_user(databases)
    notice = notice_to_user(NoticeKind.PASSWORD_RESET, user_id)
    async with setup.running():
        await setup.tell(notice)
        await setup.settled()
        with psycopg.connect(databases.shard_dsns[TOPOLOGY.shard_of_user(user_id)], autocommit=True) as connection:
            connection.execute("UPDATE mailed_links SET used_at = now()")
        await setup.cache.flushdb()
        await setup.tell(notice)
        await setup.settled()
    assert len(mail_server.postbox.letters) == 1
    assert tokens(databases, user_id) == {}


def test_the_letter_of_a_notice_is_the_same_each_time() -> None:
    writer = Writer(sender="no-reply@shop.example", link_url="https://shop.example")
    recipient = Recipient(ids.new_uuid7(), EMAIL, EMAIL.lower(), verified=False)
    notice = notice_to_user(NoticeKind.VERIFY_EMAIL, recipient.user_id)
    secret, now = b"s" * SECRET_BYTES, datetime.now(UTC)

    def written(secret: bytes = secret) -> EmailMessage:
        return writer.write(notice, recipient, secret=secret, now=now)

    assert written()["Message-ID"] == written()["Message-ID"] != written(b"t" * SECRET_BYTES)["Message-ID"]
    assert EMAIL not in repr(recipient)


@pytest.mark.parametrize(
    "sender", ["", "nobody", "Shop", "a@", "Shop <>", "\u00e9@x.example", "a@b.example\nBcc: x@y.example"]
)
def test_senders_that_are_none(sender: str) -> None:
    with pytest.raises(SenderInvalid):
        Writer(sender=sender, link_url="https://x.example")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "smtp://",
        "http://x",
        "smtp://user@x",
        "smtp://:p@x",
        "smtp://x:99999",
        "smtp://x/path",
        "smtp://[x",
        "mail.example:25",
    ],
)
def test_urls_that_name_no_mail_server(url: str) -> None:
    with pytest.raises(SmtpUrlInvalid) as caught:
        MailServer.from_url(SecretStr(url))
    assert "user" not in str(caught.value).partition(":")[2].replace("[user:password@]", "").replace("a user", "")


def test_urls_that_do() -> None:
    plain = MailServer.from_url(SecretStr("smtp://mail.example"))
    assert (plain.host, plain.port, plain.tls, plain.user) == ("mail.example", 25, False, None)
    secret = MailServer.from_url(SecretStr("smtps://a%40b:c%3Ad@mail.example"))
    assert (secret.port, secret.tls, secret.user) == (465, True, "a@b")
    assert secret.password is not None and secret.password.get_secret_value() == "c:d"
    assert "c:d" not in repr(secret)
    assert MailServer.from_url(SecretStr("smtp://a:b@mail.example")).port == 587
