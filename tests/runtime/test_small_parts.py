"""Pure functions of runtime, and the headers of its scripts."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.topology import FINGERPRINT_KEY, Topology
from runtime.process import tasks
from runtime.process.backoff import Backoff
from runtime.queue import RetryPolicy
from runtime.redis.scripts import load_script, run

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    (".".join(file.relative_to(ROOT).parent.parts), file.stem)
    for package in ("runtime", "backoffice", "workers")
    for file in (ROOT / package).glob("**/*.lua")
)


@given(first=st.floats(0.001, 1), longest=st.floats(1, 60), seed=st.integers(0, 1000))
def test_pauses_double_up_to_the_longest_and_never_exceed_it(first: float, longest: float, seed: int) -> None:
    backoff = Backoff(first_s=first, longest_s=longest, rng=random.Random(seed))
    for failures in range(2_000):
        whole = min(longest, first * 2 ** min(failures, 30))
        assert whole / 2 <= backoff.next_s() <= whole
    backoff.reset()
    assert backoff.next_s() <= first


@given(every=st.floats(0.05, 60), now=st.floats(0, 1e7))
def test_loops_of_one_process_wake_together_and_never_late(every: float, now: float) -> None:
    clock = [now]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.time, "monotonic", lambda: clock[0])
        first = tasks.until_tick(every)
        assert 0 < first <= every + tasks.TICK_S_MIN
        clock[0] += first + 0.001  # a loop that worked for a millisecond
        again = tasks.until_tick(every)
        assert again == pytest.approx(every - 0.001, abs=1e-6) or again <= tasks.TICK_S_MIN + 0.001
        assert tasks.until_tick(0) == 0
        clock[0] += 7 * every / 3
        for multiple in (1, 2, 4):
            woken = (clock[0] + tasks.until_tick(multiple * every) - tasks._PHASE_S) / every
            assert woken == pytest.approx(round(woken), abs=1e-3), "a tick of the shorter pause as well"


def test_retries_climb_a_ladder_and_end() -> None:
    policy = RetryPolicy()
    assert policy.decide(1).retry_in_ms == 200
    assert policy.decide(3).retry_in_ms == 800
    assert policy.attempts_max == 8
    assert [policy.decide(attempt).gives_up for attempt in range(1, 12)] == [False] * 7 + [True] * 4
    assert RetryPolicy(delays_ms=()).decide(1).gives_up
    with pytest.raises(AssertionError):
        policy.decide(0)


@pytest.mark.parametrize(("package", "name"), SCRIPTS)
def test_script_headers_name_as_many_keys_as_the_file_name(package: str, name: str) -> None:
    script = load_script(package, name)
    lines = script.source.splitlines()
    assert lines[0].startswith("#!lua")
    keys = next(line for line in lines if line.startswith("-- KEYS:"))
    end = next(i for i, line in enumerate(lines) if line.startswith("-- ARGV:"))
    header = " ".join(lines[lines.index(keys) : end])
    assert "-- Answer:" in script.source
    if script.key_count is None:
        assert header.startswith("-- KEYS: n ") and "ipairs(KEYS)" in script.source
        return
    assert len(re.findall(r"(?:KEYS:|,|\)|;)\s+(\d+) ", header)) == script.key_count
    used = {int(number) for number in re.findall(r"KEYS\[(\d+)\]", script.source)}
    assert used == set(range(1, script.key_count + 1))


async def test_a_script_is_called_with_all_its_keys() -> None:
    with pytest.raises(AssertionError):
        await run(None, load_script("runtime.redis", "lease_acquire-2"), ("one",), ())  # type: ignore[arg-type]


async def test_a_task_that_swallows_its_cancellation_is_cancelled_again() -> None:
    cancelled = 0

    async def stubborn() -> None:
        nonlocal cancelled
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled += 1
                if cancelled == 3:
                    raise

    async def failing() -> None:
        raise ValueError("not ours to raise")

    work = [asyncio.create_task(stubborn()), asyncio.create_task(failing())]
    await asyncio.sleep(0)
    await tasks.cancel(*work)
    assert cancelled == 3
    assert all(task.done() for task in work)
    await tasks.cancel(*work)
    assert isinstance(work[1].exception(), ValueError)


def test_cluster_settings_have_fingerprints_of_their_own() -> None:
    assert Topology().fingerprint == Topology(lanes=4, shards=4).fingerprint
    assert len({Topology(lanes=n, shards=m).fingerprint for n in range(1, 9) for m in range(1, 9)}) == 64
    assert FINGERPRINT_KEY == "flashsale:fingerprint"
