"""Background tasks under watch: no task of a process ends, or stands still, in silence.

    watched = TaskSupervisor(give_up=stop_the_process)
    watched.start("sales", directory.follow)              until cancelled: any other end is a fault
    watched.start("pools", open_pools, returns=True)      work that is done at some time
    with watched.rounds("sweep") as beat:                 inside a task that works in rounds: `beat()` at each round
        ...

The end of a task, by an exception or by a return, is an error line, makes the process not ready, and is followed by a
restart after a growing pause. After `RESTARTS_MAX` restarts in a row the supervisor gives up: the process must end, and
a new one begins with fresh memory. A round that takes longer than its bound makes the process not ready while it lasts.

Every background task starts here (`tests/architecture/test_tasks.py`). Parts of one task use `together`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import prometheus_client
import structlog

from runtime.process import tasks
from runtime.process.backoff import Backoff

RESTARTS_MAX: Final = 10  # in a row; with the pauses below, about 20 s
PAUSE_S_FIRST: Final = 0.1
PAUSE_S_MAX: Final = 5.0
STEADY_S: Final = 10.0  # a task that has run for this long is well again
ROUND_S_MAX: Final = 60.0
LOOK_S: Final = 1.0  # between looks at the rounds

TASK_RESTARTS = prometheus_client.Counter(
    "flashsale_task_restarts", "Background tasks that ended and were started again.", ["task"]
)

log = structlog.get_logger(__name__)

Beat = Callable[[], None]
Work = Callable[[], Coroutine[Any, Any, object]]


class TaskEnded(Exception):
    """A task that runs until it is cancelled has returned."""


class TasksGivenUp(Exception):
    """A task ended again after `RESTARTS_MAX` restarts in a row. Carries its name."""

    def __init__(self, name: str) -> None:
        """`name` is the task's."""
        super().__init__(f"background task {name!r} ended again after {RESTARTS_MAX} restarts in a row")
        self.name = name


@dataclass(slots=True)
class _Watched:
    name: str
    work: Work
    returns: bool
    task: asyncio.Task[None] | None = None
    runs_since: float | None = None  # None between an end and a restart
    restarts_in_a_row: int = 0
    problem: str | None = None
    backoff: Backoff = field(default_factory=lambda: Backoff(first_s=PAUSE_S_FIRST, longest_s=PAUSE_S_MAX))


@dataclass(slots=True)
class _Rounds:
    s_max: float
    began_at: float
    is_late: bool = False


class TaskSupervisor:
    """The background tasks of one process, or of one part of a process."""

    def __init__(
        self,
        *,
        give_up: Callable[[str], object] | None = None,
        stopping: asyncio.Event | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`give_up` gets the name of the task that ended too often. Once `stopping` is set, tasks may return."""
        self.restarts: Counter[str] = Counter()  # by task
        self._give_up = give_up
        self._stopping = stopping
        self._now = now
        self._watched: dict[str, _Watched] = {}
        self._rounds: dict[str, _Rounds] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._failure: Exception | None = None

    def start(
        self, name: str, work: Work, *, returns: bool = False, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        """Run `work()` as a task; call it again after each end. `returns`: a return is no fault.

        `loop`: for a caller outside of a running event loop.
        """
        assert name not in self._watched, f"task {name!r} runs already"
        watched = self._watched[name] = _Watched(name, work, returns)
        watched.task = (loop or asyncio.get_running_loop()).create_task(self._keep_running(watched), name=name)

    @contextmanager
    def rounds(self, name: str, *, s_max: float = ROUND_S_MAX) -> Iterator[Beat]:
        """For work in rounds: call the result at each round, at least every `s_max` seconds."""
        rounds = self._rounds[name] = _Rounds(s_max, self._now())
        if self._looking is None:
            self._look()

        def beat() -> None:
            rounds.began_at = self._now()

        try:
            yield beat
        finally:
            if self._rounds.get(name) is rounds:  # no second one of this name has replaced it
                del self._rounds[name]
            if not self._rounds:
                self._stop_looking()

    @property
    def problems(self) -> dict[str, str]:
        """Tasks that are not well: name -> a phrase for /readyz. Empty when all run."""
        problems = {}
        for watched in self._watched.values():
            self._forgive(watched)
            if watched.problem is not None:
                problems[watched.name] = watched.problem
        for name, rounds in self._rounds.items():
            late_s = self._now() - rounds.began_at
            if late_s > rounds.s_max:
                problems[f"{name} rounds"] = f"its round has taken {late_s:.0f} s, the bound is {rounds.s_max:g} s"
        return problems

    async def finished(self) -> None:
        """Return when every task has ended; then none is left, also after an exception or a cancellation.

        Raises TasksGivenUp, or the exception of a task that failed while the process was stopping.
        """
        try:
            while running := [w.task for w in self._watched.values() if w.task is not None and not w.task.done()]:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                if isinstance(self._failure, TasksGivenUp):
                    break
        finally:
            await self.stop()
        if self._failure is not None:
            raise self._failure

    def raise_given_up(self) -> None:
        """Raise TasksGivenUp if a task ended too often: for a part of a process, whose own task must end then."""
        if isinstance(self._failure, TasksGivenUp):
            raise self._failure

    async def cancel(self, name: str) -> None:
        """End one task."""
        watched = self._watched.pop(name, None)
        if watched is not None and watched.task is not None:
            await tasks.cancel(watched.task)

    async def stop(self) -> None:
        """End all tasks."""
        self._stop_looking()
        await tasks.cancel(*(watched.task for watched in self._watched.values() if watched.task is not None))
        self._watched.clear()

    async def _keep_running(self, watched: _Watched) -> None:
        """Run the work, again after each end, until it is cancelled, ends as it may, or ends too often."""
        while True:
            error: BaseException | None = None
            watched.runs_since = self._now()
            try:
                await watched.work()
            except asyncio.CancelledError as cancelled:
                if _is_cancelled():
                    raise
                error = cancelled  # of something that the work awaited: the work has ended by itself
            except Exception as raised:
                error = raised
            self._forgive(watched)
            watched.runs_since = None
            if error is None and (watched.returns or self._is_stopping):
                del self._watched[watched.name]
                return
            pause_s = self._take_end(watched, error)
            if pause_s is None:
                return
            if self._stopping is None:
                await asyncio.sleep(pause_s)
            elif await tasks.wait_within(self._stopping, pause_s):
                return

    def _take_end(self, watched: _Watched, error: BaseException | None) -> float | None:
        """Report an end. The seconds until the restart; None: no restart follows."""
        gives_up = watched.restarts_in_a_row >= RESTARTS_MAX
        pause_s = None if gives_up or self._is_stopping else watched.backoff.next_s()
        by = "a return" if error is None else type(error).__name__
        restart_in_s = None if pause_s is None else round(pause_s, 2)
        log.error("task ended", task=watched.name, by=by, restart_in_s=restart_in_s, exc_info=error)
        watched.problem = f"ended by {by}"
        if pause_s is not None:
            watched.restarts_in_a_row += 1
            watched.problem += f", restart {watched.restarts_in_a_row} of {RESTARTS_MAX} in a row"
            self.restarts[watched.name] += 1
            TASK_RESTARTS.labels(watched.name).inc()
        elif not self._is_stopping:
            self._failure = TasksGivenUp(watched.name)
            if self._give_up is not None:
                self._give_up(watched.name)
        elif self._failure is None and isinstance(error, Exception):
            self._failure = error
        return pause_s

    def _forgive(self, watched: _Watched) -> None:
        """Forget the earlier ends of a task that has run for `STEADY_S` since its last restart."""
        runs_since = watched.runs_since
        if watched.problem is not None and runs_since is not None and self._now() - runs_since >= STEADY_S:
            watched.problem = None
            watched.restarts_in_a_row = 0
            watched.backoff.reset()

    @property
    def _is_stopping(self) -> bool:
        return self._stopping is not None and self._stopping.is_set()

    def _stop_looking(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _look(self) -> None:
        """Log each round that passes its bound, once, and its end."""
        for name, rounds in self._rounds.items():
            late_s = self._now() - rounds.began_at
            is_late = late_s > rounds.s_max
            if is_late != rounds.is_late:
                rounds.is_late = is_late
                if is_late:
                    log.error("round takes too long", task=name, bound_s=rounds.s_max)
                else:
                    log.info("round is over", task=name)
        self._looking = asyncio.get_running_loop().call_later(tasks.until_tick(LOOK_S), self._look)


def no_beat() -> None:
    """For work in rounds that nothing watches."""


async def together(**parts: Coroutine[Any, Any, object]) -> NoReturn:
    """Run the parts of one task, by name, until the first of them ends; then none is left.

    Raises its exception, or TaskEnded after a return: the watched task that calls this ends with it.
    """
    running = [asyncio.create_task(part, name=name) for name, part in parts.items()]
    try:
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        ended = [task for task in running if task.done()]
        for task in ended:
            task.result()
        raise TaskEnded(ended[0].get_name())
    finally:
        await tasks.cancel(*running)


def _is_cancelled() -> bool:
    """Whether the current task itself was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
