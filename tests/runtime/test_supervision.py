"""Watched tasks: an end is an error line, a problem of readiness and a restart; a late round is a problem, too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

from runtime.process import supervision
from runtime.process.service import Service
from runtime.process.settings import load_settings
from runtime.process.supervision import RESTARTS_MAX, TaskEnded, TasksGivenUp, TaskSupervisor, together

WAIT_S_MAX = 20.0


@dataclass
class Clock:
    """Seconds that only a test moves."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Fragile:
    """Work whose first runs end by the listed exceptions (None: a return); the later ones run until cancelled."""

    ends: list[BaseException | None]
    runs: int = 0
    running: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False

    async def work(self) -> None:
        self.runs += 1
        if self.ends:
            end = self.ends.pop(0)
            if end is None:
                return
            raise end
        self.running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "PAUSE_S_FIRST", 0.001)
    monkeypatch.setattr(supervision, "PAUSE_S_MAX", 0.002)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        while not condition():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.002)


@pytest.mark.parametrize(
    ("end", "by"),
    [
        (KeyError("a field that a foreign record lacks"), "KeyError"),
        (None, "a return"),
        (asyncio.CancelledError(), "CancelledError"),  # of a future that the work awaited
    ],
)
async def test_an_end_is_an_error_line_a_problem_and_a_restart(end: BaseException | None, by: str) -> None:
    clock, work = Clock(), Fragile([end])
    watched = TaskSupervisor(now=clock)
    with capture_logs() as lines:
        watched.start("sweep", work.work)
        await asyncio.wait_for(work.running.wait(), WAIT_S_MAX)
    assert work.runs == 2
    [line] = lines
    assert (line["event"], line["log_level"], line["task"], line["by"]) == ("task ended", "error", "sweep", by)
    assert watched.restarts == {"sweep": 1}
    # It stays a problem until the task has run for a while: a task that ends again and again never looks well.
    assert watched.problems == {"sweep": f"ended by {by}, restart 1 of {RESTARTS_MAX} in a row"}
    clock.now_s += supervision.STEADY_S
    assert watched.problems == {}
    await watched.stop()
    assert work.cancelled


async def test_work_that_is_done_at_some_time_may_return() -> None:
    watched = TaskSupervisor()
    done = Fragile([None])
    watched.start("pools", done.work, returns=True)
    await watched.finished()
    assert (done.runs, watched.problems, watched.restarts) == (1, {}, {})


async def test_restarts_are_bounded_then_the_process_must_end() -> None:
    given_up: list[str] = []
    watched = TaskSupervisor(give_up=given_up.append)
    broken = Fragile([RuntimeError("always") for _ in range(RESTARTS_MAX + 1)])
    other = Fragile([])
    watched.start("broken", broken.work)
    watched.start("other", other.work)
    with pytest.raises(TasksGivenUp, match="'broken' ended again after 10 restarts in a row"):
        await asyncio.wait_for(watched.finished(), WAIT_S_MAX)
    assert (broken.runs, given_up, other.cancelled) == (RESTARTS_MAX + 1, ["broken"], True)


async def test_ends_far_apart_are_not_in_a_row() -> None:
    clock = Clock()
    given_up: list[str] = []
    watched = TaskSupervisor(give_up=given_up.append, now=clock)
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        clock.now_s += supervision.STEADY_S
        if runs <= 2 * RESTARTS_MAX:
            raise RuntimeError("now and then")
        await asyncio.Event().wait()

    watched.start("work", work)
    await until(lambda: runs == 2 * RESTARTS_MAX + 1)
    assert given_up == []
    await watched.stop()


async def test_a_round_that_takes_too_long_is_a_problem_while_it_lasts() -> None:
    clock = Clock()
    watched = TaskSupervisor(now=clock)
    with capture_logs() as lines, watched.rounds("sweep", s_max=30) as beat:
        clock.now_s = 30.0
        assert watched.problems == {}
        clock.now_s = 31.0
        assert watched.problems == {"sweep rounds": "its round has taken 31 s, the bound is 30 s"}
        watched._look()
        watched._look()
        beat()
        assert watched.problems == {}
        watched._look()
    assert [line["event"] for line in lines] == ["round takes too long", "round is over"]
    clock.now_s = 100.0
    assert watched.problems == {}


async def test_a_service_is_not_ready_while_a_task_is_not_well_and_its_tasks_return_when_it_stops() -> None:
    service = Service("demo", load_settings({}))
    service.ready("redis", ok=True)
    fragile = Fragile([ValueError("once")])

    async def obedient() -> None:
        await service.stopping.wait()

    service.background.start("fragile", fragile.work)
    service.background.start("obedient", obedient)
    await asyncio.wait_for(fragile.running.wait(), WAIT_S_MAX)
    assert not service.is_ready
    assert service.checks["task fragile"] == (False, f"ended by ValueError, restart 1 of {RESTARTS_MAX} in a row")
    await service.background.cancel("fragile")
    assert service.is_ready
    finishing = asyncio.create_task(service.background.finished())
    await asyncio.sleep(0)
    service.stopping.set()
    await asyncio.wait_for(finishing, WAIT_S_MAX)


async def test_a_failure_while_stopping_is_raised_after_the_others_have_drained() -> None:
    service = Service("demo", load_settings({}))
    order: list[str] = []

    async def failing() -> None:
        await service.stopping.wait()
        order.append("failing")
        raise OSError("no space left")

    async def draining() -> None:
        await service.stopping.wait()
        await asyncio.sleep(0.05)
        order.append("draining")

    service.background.start("failing", failing)
    service.background.start("draining", draining)
    finishing = asyncio.create_task(service.background.finished())
    await asyncio.sleep(0)
    service.stopping.set()
    with pytest.raises(OSError, match="no space left"):
        await asyncio.wait_for(finishing, WAIT_S_MAX)
    assert order == ["failing", "draining"]


@pytest.mark.parametrize(("end", "raised"), [(KeyError("x"), KeyError), (None, TaskEnded)])
async def test_parts_of_one_task_end_together(end: BaseException | None, raised: type[Exception]) -> None:
    lasting, ending = Fragile([]), Fragile([end])

    async def later(work: Callable[[], Any]) -> None:
        await lasting.running.wait()
        await work()

    with pytest.raises(raised):
        await together(lasting=lasting.work(), ending=later(ending.work))
    assert lasting.cancelled


async def test_parts_are_cancelled_with_their_task() -> None:
    lasting = Fragile([])
    task = asyncio.create_task(together(lasting=lasting.work()))
    await lasting.running.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert lasting.cancelled
