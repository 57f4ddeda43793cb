"""Argon2id off the event loop: parameters, bounds, and equal cost with and without an account."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import argon2
import pytest

from backoffice.auth import passwords
from backoffice.auth.passwords import THREADS, WAITING_MAX, Passwords
from backoffice.web.messages import Refused
from domain.problems import Problem


@pytest.fixture
def hashing() -> Iterator[Passwords]:
    made = Passwords()
    yield made
    made.close()


async def test_parameters_are_those_of_owasp(hashing: Passwords) -> None:
    made = argon2.extract_parameters(await hashing.hash("x"))
    assert (made.type, made.memory_cost, made.time_cost, made.parallelism) == (argon2.Type.ID, 19_456, 2, 1)
    assert made.salt_len >= 16 and made.hash_len >= 32


async def test_more_hashes_than_may_wait_are_refused_at_once(hashing: Passwords) -> None:
    count = THREADS + WAITING_MAX + 5
    ends = await asyncio.gather(*(hashing.verify(None, "x") for _ in range(count)), return_exceptions=True)
    refused = [end for end in ends if isinstance(end, Refused)]
    assert len(refused) == 5
    assert {end.details.problem for end in refused} == {Problem.OVERLOADED}
    assert all(end.details.retry_after_s for end in refused)
    assert [end for end in ends if not isinstance(end, Refused)] == [False] * (THREADS + WAITING_MAX)
    assert not await hashing.verify(None, "x")  # the queue has room again


async def test_the_event_loop_goes_on_meanwhile(hashing: Passwords) -> None:
    work = asyncio.gather(*(hashing.hash("x") for _ in range(8)))
    turns = 0
    while not work.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 8  # a loop that hashes itself could not count
    assert len(await work) == 8


async def test_a_missing_account_costs_a_complete_verification(hashing: Passwords) -> None:
    """The decoy is a hash with the same parameters, verified completely on the same threads."""
    used: list[str] = []

    class Watched(argon2.PasswordHasher):
        def verify(self, hash: str | bytes, password: str | bytes) -> bool:  # noqa: A002 - as in the library
            used.append(f"{hash!s} {threading.current_thread().name.partition('_')[0]}")
            return super().verify(hash, password)

    hashing._hasher = Watched(time_cost=passwords.TIME_COST, memory_cost=passwords.MEMORY_KIB, parallelism=1)
    real = await hashing.hash("right")
    assert await hashing.verify(real, "right")
    assert not await hashing.verify(real, "wrong")
    assert not await hashing.verify(None, "right")
    assert not await hashing.verify(None, "no account has this hash")
    assert [line.split(" ")[-1] for line in used] == ["argon2"] * 4
    parameters = {line.split("$")[3] for line in used}
    assert parameters == {"m=19456,t=2,p=1"}


async def test_a_damaged_hash_is_no_match(hashing: Passwords) -> None:
    for damaged in ("", "x", "$argon2id$v=19$m=19456,t=2,p=1$AAAA", "$2b$12$abc"):
        assert not await hashing.verify(damaged or "x", "right")


def test_outdated_hashes(hashing: Passwords) -> None:
    assert hashing.is_outdated(argon2.PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash("x"))
    today = argon2.PasswordHasher(time_cost=passwords.TIME_COST, memory_cost=passwords.MEMORY_KIB, parallelism=1)
    assert not hashing.is_outdated(today.hash("x"))
