"""The contract of the dead-letter port, on PostgreSQL, and of replay over any queue port."""

from __future__ import annotations

import asyncio
import importlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from dataclasses import field as member
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from runtime.dead_letters import (
    BeingReplayed,
    DeadLetter,
    DeadLetters,
    DeadLettersFull,
    DeadLettersUnavailable,
    NewLetter,
    NotReplayable,
    PostgresDeadLetters,
    Replay,
    open_dead_letters,
    replay,
)
from runtime.postgres.pool import postgres_pool
from runtime.queue import Failure, FailureKind, QueueFull, QueueUnavailable
from runtime.queue.port import failure_now
from tests.fixtures.fix_databases import Databases

WAIT_S = 10.0
NO_SUCH_IDS = ["", "x", "0", "-1", "+1", "01", " 1", "1 ", "1_0", "１", "9" * 19, "9" * 40, "q~1-1", "1\0"]


def letter(number: int = 1, *, queue: str = "q", **members: Any) -> NewLetter:
    values = {"kind": FailureKind.REFUSED_BY_DATABASE, "reason": "no such sale", "attempts": 8, **members}
    return NewLetter(queue=queue, message_id=f"m{number}", body=b"body %d" % number, **values)


@dataclass
class Store:
    """The adapter under test: fresh objects over one database."""

    open: Callable[..., DeadLetters]


@pytest.fixture
async def store(databases: Databases) -> AsyncIterator[Store]:
    pool = postgres_pool(SecretStr(databases.catalogue_dsn), size_max=8)
    await pool.open()
    yield Store(lambda *, letters_max=1000: PostgresDeadLetters(pool, letters_max=letters_max))
    await pool.close()


@dataclass
class RecordingQueue:
    """A queue port that records publishes; `errors` are raised first, one for each publish, after the record."""

    published: list[tuple[str, bytes, dict[str, Any]]] = member(default_factory=list)
    errors: list[Exception] = member(default_factory=list)
    gate: asyncio.Event | None = None
    started: asyncio.Event = member(default_factory=asyncio.Event)

    async def publish(self, queue: str, body: bytes, **members: Any) -> None:
        self.started.set()
        if self.gate is not None:
            await self.gate.wait()
        self.published.append((queue, body, members))
        if self.errors:
            raise self.errors.pop(0)

    def consume(self, queue: str, *, prefetch: int) -> Any:
        raise NotImplementedError(queue, prefetch)

    async def depth(self, queue: str) -> Any:
        raise NotImplementedError(queue)

    async def barrier(self, queue: str, *, wait_s: float) -> bool:
        raise NotImplementedError(queue, wait_s)

    async def close(self) -> None:
        """Nothing to close."""


async def all_ids(letters: DeadLetters, queue: str | None = None, *, limit: int = 50) -> list[str]:
    found: list[DeadLetter] = []
    cursor = None
    while True:
        page, cursor = await letters.list(queue, cursor=cursor, limit=limit)
        assert len(page) <= limit
        found += page
        if cursor is None:
            return [one.id for one in found]


async def test_a_letter_is_kept_with_all_its_parts(store: Store) -> None:
    letters = store.open()
    history = (
        Failure(1_700_000_000_001, FailureKind.NO_GRANT, "first"),
        Failure(1_700_000_000_002, FailureKind.MALFORMED, "2"),
    )
    new = NewLetter(
        queue="orders.shard.0", message_id="lane:1-2", body=bytes(range(256)), headers={"ü": "ß", "": ""},
        kind=FailureKind.MALFORMED, reason="x" * 600, attempts=3, first_seen_ms=1_700_000_000_123, history=history,
    )  # fmt: skip
    letter_id = await letters.add(new)
    assert letter_id.isascii() and letter_id.isalnum()
    found = await letters.get(letter_id)
    assert found is not None and found.replayable and found.died_ms > 1_700_000_000_123
    assert found == DeadLetter(
        letter_id, new.queue, new.message_id, new.body, new.headers, FailureKind.MALFORMED, "x" * 500, 3, found.replayable,
        1_700_000_000_123, found.died_ms, history,
    )  # fmt: skip
    assert await letters.list(None) == ([found], None)
    assert await letters.list(new.queue) == ([found], None)
    assert await letters.list("other") == ([], None)
    assert await letters.count() == {new.queue: 1}


async def test_nul_in_any_text_is_no_obstacle(store: Store) -> None:
    letters = store.open()
    new = NewLetter(
        queue="q", message_id="a\0b", body=b"\0", headers={"\0": "\0"}, kind=FailureKind.MALFORMED, reason="\0",
        history=(Failure(1, FailureKind.MALFORMED, "\0"),),
    )  # fmt: skip
    found = await letters.get(await letters.add(new))
    assert found is not None
    assert (found.message_id, found.reason, found.body) == ("a\ufffdb", "\ufffd", b"\0")
    assert (found.headers, found.history[0].reason) == ({"\0": "\0"}, "\0")


async def test_lone_surrogates_in_a_reason_are_no_obstacle(store: Store) -> None:
    letters = store.open()
    failure = failure_now(FailureKind.DEFERRED_BY_RECEIVER, "450 sp\udce4ter")
    found = await letters.get(await letters.add(letter(reason="550 Empf\udce4nger", history=(failure,))))
    assert found is not None
    assert (found.reason, found.history[0].reason) == ("550 Empf?nger", "450 sp?ter")


async def test_adding_again_after_a_crash_makes_no_second_letter(store: Store) -> None:
    letters = store.open()
    first = await letters.add(letter())
    again = await store.open().add(letter(reason="other words", attempts=9, kind=FailureKind.UNROUTABLE))
    assert again == first
    found = await letters.get(first)
    assert found is not None
    assert (found.reason, found.attempts, found.kind) == ("other words", 9, FailureKind.UNROUTABLE)
    others = [letter(queue="p"), letter(2), NewLetter(**{**_members(letter()), "body": b"other"})]
    assert len({first, *[await letters.add(other) for other in others]}) == 4
    assert await letters.count() == {"p": 1, "q": 3}


def _members(new: NewLetter) -> dict[str, Any]:
    return {name: getattr(new, name) for name in new.__slots__}


async def test_concurrent_additions_of_one_letter_make_one(store: Store) -> None:
    letters = store.open(letters_max=3)
    ids = await asyncio.gather(*(letters.add(letter()) for _ in range(8)))
    assert len(set(ids)) == 1
    assert await letters.count() == {"q": 1}


@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5), st.binary(max_size=5)), min_size=2, unique=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_identity_tells_letters_apart(parts: list[tuple[str, str, bytes]]) -> None:
    identities = {
        NewLetter(queue=queue, message_id=message, body=body, kind=FailureKind.MALFORMED, reason="").identity
        for queue, message, body in parts
    }
    assert len(identities) == len(parts)


async def test_letters_are_listed_in_pages_and_listing_takes_none(store: Store) -> None:
    letters = store.open()
    rng = random.Random(7)
    expected: list[tuple[str, str]] = []
    for number in range(17):
        queue = rng.choice(["a", "b.poison", "c"])
        expected.append((queue, await letters.add(letter(number, queue=queue))))
    for limit in (1, 2, 3, 5, 50):
        assert await all_ids(letters, limit=limit) == [letter_id for _, letter_id in expected]
        for queue in ("a", "b.poison", "c"):
            assert await all_ids(letters, queue, limit=limit) == [i for name, i in expected if name == queue]
    assert sum((await letters.count()).values()) == 17


@pytest.mark.parametrize("wrong", NO_SUCH_IDS)
async def test_ids_that_cannot_exist_are_not_found(store: Store, wrong: str) -> None:
    letters = store.open()
    assert await letters.get(wrong) is None
    assert await letters.delete(wrong) is False
    assert await letters.claim(wrong, lease_ms=1000) is None
    assert await letters.was_replayed(wrong) is False
    assert await replay(letters, RecordingQueue(), wrong) is Replay.NOT_FOUND
    if wrong != "9" * 19:
        with pytest.raises(ValueError, match="not the id"):
            await letters.list(None, cursor=wrong)


async def test_a_queue_that_cannot_exist_has_no_letters(store: Store) -> None:
    letters = store.open()
    await letters.add(letter())
    assert await letters.list("q\0") == ([], None)


async def test_deleted_is_gone_for_good(store: Store) -> None:
    letters = store.open()
    letter_id = await letters.add(letter())
    assert await letters.delete(letter_id) is True
    assert await letters.delete(letter_id) is False
    assert await letters.get(letter_id) is None
    assert await replay(letters, RecordingQueue(), letter_id) is Replay.NOT_FOUND
    assert await letters.count() == {}
    assert await letters.add(letter()) != letter_id


async def test_the_bound_is_each_queues_own_and_nothing_is_dropped_at_it(store: Store) -> None:
    letters = store.open(letters_max=2)
    first, second = await letters.add(letter(1)), await letters.add(letter(2))
    with pytest.raises(DeadLettersFull) as caught:
        await letters.add(letter(3))
    assert caught.value.queue == "q"
    assert await letters.add(letter(2)) == second, "a letter that is there already needs no room"
    await letters.add(letter(3, queue="other"))
    assert await all_ids(letters, "q") == [first, second]
    await letters.delete(first)
    third = await letters.add(letter(3))
    with pytest.raises(DeadLettersFull):
        await letters.add(letter(4))
    assert await replay(letters, RecordingQueue(), second) is Replay.DONE
    fourth = await letters.add(letter(4))
    assert await all_ids(letters, "q") == [third, fourth]


async def test_the_bound_holds_under_concurrent_additions_and_deletions(store: Store) -> None:
    letters = store.open(letters_max=5)
    rng = random.Random(11)

    async def work(number: int) -> None:
        for step in range(6):
            try:
                letter_id = await letters.add(letter(number * 100 + step))
            except DeadLettersFull:
                continue
            assert 0 < (await letters.count())["q"] <= 5
            if rng.random() < 0.5:
                await (
                    letters.delete(letter_id) if rng.random() < 0.5 else replay(letters, RecordingQueue(), letter_id)
                )

    await asyncio.gather(*(work(number) for number in range(6)))
    assert (await letters.count()).get("q", 0) == len(await all_ids(letters))


# Replay


async def test_replay_publishes_the_message_as_it_was_and_removes_the_letter(store: Store) -> None:
    letters, queue = store.open(), RecordingQueue()
    history = (Failure(5, FailureKind.REFUSED_BY_DATABASE, "no"),)
    letter_id = await letters.add(letter(headers={"a": "b"}, first_seen_ms=1_700_000_000_000, history=history))
    assert await replay(letters, queue, letter_id) is Replay.DONE
    members = {"message_id": "m1", "headers": {"a": "b"}, "first_seen_ms": 1_700_000_000_000, "history": history}
    assert queue.published == [("q", b"body 1", members)]
    assert await letters.get(letter_id) is None
    assert await replay(letters, queue, letter_id) is Replay.DONE_BEFORE
    assert len(queue.published) == 1 and await letters.count() == {}


async def test_many_callers_replay_once(store: Store) -> None:
    letters, queue = store.open(), RecordingQueue()
    letter_id = await letters.add(letter())
    results = await asyncio.gather(*(replay(store.open(), queue, letter_id) for _ in range(8)))
    assert sorted(result.name for result in results) == ["DONE", *["DONE_BEFORE"] * 7]
    assert len(queue.published) == 1


async def test_a_letter_being_replayed_is_there_and_waits_are_bounded(store: Store) -> None:
    letters, queue = store.open(), RecordingQueue(gate=asyncio.Event())
    letter_id = await letters.add(letter())
    first = asyncio.create_task(replay(letters, queue, letter_id))
    await queue.started.wait()
    assert await letters.get(letter_id) is not None
    with pytest.raises(BeingReplayed, match="is being replayed by another request"):
        await replay(store.open(), queue, letter_id, wait_s=0.1)
    assert queue.gate is not None
    queue.gate.set()
    assert await first is Replay.DONE
    assert len(queue.published) == 1


@pytest.mark.parametrize("error", [QueueFull("q"), QueueUnavailable("q", "no confirm")])
async def test_a_publish_that_is_not_confirmed_leaves_the_letter(store: Store, error: Exception) -> None:
    letters, queue = store.open(), RecordingQueue(errors=[error])
    letter_id = await letters.add(letter())
    with pytest.raises(type(error)):
        await replay(letters, queue, letter_id)
    assert await letters.get(letter_id) is not None
    assert await replay(letters, queue, letter_id) is Replay.DONE, "the claim was given back"


async def test_a_publish_without_an_end_is_given_up_before_its_claim_ends(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publish may wait for a connection, a look at the queue and its confirm: together longer than the lease."""
    replaying = importlib.import_module("runtime.dead_letters.replay")  # the package has a function of this name
    assert replaying.PUBLISH_S_MAX * 1000 < replaying.LEASE_MS
    monkeypatch.setattr(replaying, "PUBLISH_S_MAX", 0.05)
    letters, queue = store.open(), RecordingQueue(gate=asyncio.Event())
    letter_id = await letters.add(letter())
    async with asyncio.timeout(10):
        with pytest.raises(QueueUnavailable, match="no confirm within"):
            await replay(letters, queue, letter_id)
    assert queue.gate is not None
    queue.gate.set()
    assert await replay(letters, queue, letter_id) is Replay.DONE, "the claim was given back"


@pytest.mark.parametrize("published", [False, True])
async def test_a_process_that_dies_in_a_replay_leaves_the_letter_for_another(store: Store, published: bool) -> None:
    """At least once: the message is in its queue perhaps twice, never not at all."""
    letters, queue = store.open(), RecordingQueue()
    letter_id = await letters.add(letter())
    dead = await letters.claim(letter_id, lease_ms=300)
    assert dead is not None
    if published:
        await queue.publish(dead.letter.queue, dead.letter.body)
    assert await letters.claim(letter_id, lease_ms=300) is None
    assert await replay(letters, queue, letter_id, wait_s=WAIT_S) is Replay.DONE
    assert len(queue.published) == 1 + published
    await letters.finish(dead)
    await letters.release(dead)
    assert await replay(letters, queue, letter_id) is Replay.DONE_BEFORE


async def test_a_claim_that_was_taken_over_ends_nothing(store: Store) -> None:
    letters = store.open()
    letter_id = await letters.add(letter())
    late = await letters.claim(letter_id, lease_ms=1)
    await asyncio.sleep(0.05)
    current = await letters.claim(letter_id, lease_ms=60_000)
    assert late is not None and current is not None
    await letters.finish(late)
    await letters.release(late)
    assert await letters.get(letter_id) is not None
    assert await letters.claim(letter_id, lease_ms=1000) is None
    await letters.release(current)
    assert await letters.claim(letter_id, lease_ms=1000) is not None


async def test_a_message_that_dies_again_during_its_replay_is_a_new_letter(store: Store) -> None:
    """Its consumer was faster than the removal: the removal must not take the new letter along."""
    letters = store.open()
    letter_id = await letters.add(letter())
    claim = await letters.claim(letter_id, lease_ms=60_000)
    assert claim is not None
    new_id = await letters.add(letter(reason="again", attempts=1))
    await letters.finish(claim)
    assert new_id != letter_id
    assert await letters.get(letter_id) is None and await letters.was_replayed(letter_id)
    found = await letters.get(new_id)
    assert found is not None and found.reason == "again"
    assert await letters.count() == {"q": 1}


async def test_bytes_that_were_never_a_message_are_not_replayed(store: Store) -> None:
    letters, queue = store.open(), RecordingQueue()
    letter_id = await letters.add(letter(attempts=0, replayable=False, kind=FailureKind.UNROUTABLE))
    with pytest.raises(NotReplayable, match="was never a queue message"):
        await replay(letters, queue, letter_id)
    found = await letters.get(letter_id)
    assert found is not None and not found.replayable
    assert queue.published == []
    assert await letters.delete(letter_id) is True
    assert await replay(letters, queue, letter_id) is Replay.NOT_FOUND


async def test_replays_are_remembered_for_a_day(store: Store, databases: Databases) -> None:
    letters, queue = store.open(), RecordingQueue()
    old, new = await letters.add(letter(1)), await letters.add(letter(2))
    await replay(letters, queue, old)
    with psycopg.connect(databases.catalogue_dsn, autocommit=True) as connection:
        connection.execute("UPDATE replayed_letters SET replayed_at = now() - interval '25 hours'")
    await replay(letters, queue, new)
    assert await replay(letters, queue, old) is Replay.NOT_FOUND
    assert await replay(letters, queue, new) is Replay.DONE_BEFORE


async def test_a_database_that_is_away_is_unavailable_and_used_again_afterwards(databases: Databases) -> None:
    server = databases.catalogue_dsn.rpartition("/")[0] + "/postgres"

    def allow(*, connections: bool) -> None:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE catalogue WITH ALLOW_CONNECTIONS {connections}")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'catalogue'")

    letters = open_dead_letters(SecretStr(databases.catalogue_dsn))
    letter_id = await letters.add(letter())
    allow(connections=False)
    try:
        operations: Sequence[Any] = (letters.add(letter(2)), letters.list(None), letters.delete(letter_id))
        ends = await asyncio.gather(*operations, return_exceptions=True)
        assert {type(end) for end in ends} == {DeadLettersUnavailable}
    finally:
        allow(connections=True)
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                assert await all_ids(letters) == [letter_id]
                break
            except DeadLettersUnavailable:
                await asyncio.sleep(0.1)
    await letters.close()
