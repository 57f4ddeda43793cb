"""Lifecycle of a process: event loop, signals, readiness, health and metrics over HTTP, and the exit status.

A worker's `__main__` calls `run(name, settings, main)`. SIGTERM and SIGINT set `service.stopping`; `main` finishes the
work in flight and returns: exit status 0. An exception from `main` is logged as `fatal`: exit status 1.
Does not restart processes: the supervisor does.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import structlog
import uvloop

from runtime.process import probes, tasks
from runtime.process.settings import Settings, SettingsError, load_settings
from runtime.process.supervision import TaskSupervisor
from runtime.process.telemetry import configure_logging

# Added to the time for work in flight: closing clients, the last metrics.
STOP_EXTRA_S = 5.0

log = structlog.get_logger()


@dataclass(slots=True)
class Service:
    """The argument of `main`: the settings, the stop event, the background tasks, and the conditions of readiness.

    `main` starts its tasks with `background.start` and waits for `background.finished`. A task that is not well is a
    condition of readiness that does not hold.
    """

    name: str
    settings: Settings
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    background: TaskSupervisor = field(init=False)
    _checks: dict[str, dict[object, tuple[bool, str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """The supervisor takes part in the stop."""
        self.background = TaskSupervisor(stopping=self.stopping)

    def ready(self, name: str, ok: bool, detail: str = "", *, by: object = None) -> None:
        """Register or change one condition of readiness. /readyz shows `detail`: it must not contain secrets.

        A condition that several parts report (`by`) holds when it holds for each of them: one that is well does not
        hide the trouble of another.
        """
        self._checks.setdefault(name, {})[by] = (ok, detail)

    @property
    def checks(self) -> dict[str, tuple[bool, str]]:
        """All conditions, by name: (ok, detail)."""
        troubled = {f"task {name}": (False, problem) for name, problem in self.background.problems.items()}
        # `min` takes a condition that does not hold before one that does.
        merged = {name: min(reports.values(), key=lambda report: report[0]) for name, reports in self._checks.items()}
        return {**merged, **troubled}

    @property
    def is_ready(self) -> bool:
        """Every condition holds, there is at least one, and the process is not stopping."""
        checks = self.checks
        return bool(checks) and not self.stopping.is_set() and all(ok for ok, _ in checks.values())

    async def pause(self, seconds: float) -> bool:
        """Sleep, but wake when the process must stop. Returns whether it must."""
        return await tasks.wait_within(self.stopping, seconds)

    async def tick(self, every_s: float) -> bool:
        """As `pause`, until the next tick of this length (`tasks.until_tick`): at most `every_s`."""
        return await self.pause(tasks.until_tick(every_s))


class DrainTimeout(Exception):
    """Work in flight did not finish in time after SIGTERM."""


Main = Callable[[Service], Coroutine[Any, Any, None]]


async def _serve(name: str, settings: Settings, main: Main) -> None:
    service = Service(name, settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stopping.set)
    loop.set_exception_handler(_log_unhandled)
    server = await _start_probes(service)
    log.info("started", metrics_port=settings.metrics_port, fingerprint=settings.topology.fingerprint)
    work = asyncio.create_task(main(service), name=name)
    stop = asyncio.create_task(service.stopping.wait())
    try:
        await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        if service.stopping.is_set():
            log.info("stopping")
            await asyncio.wait({work}, timeout=settings.drain_ms / 1000 + STOP_EXTRA_S)
        if not work.done():
            raise DrainTimeout(f"not drained within {settings.drain_ms / 1000 + STOP_EXTRA_S:.0f} s after the signal")
        work.result()
    finally:
        stop.cancel()
        async with asyncio.timeout(STOP_EXTRA_S):
            await tasks.cancel(work)
        if server is not None:
            await server.stop()
    log.info("stopped")


async def _start_probes(service: Service) -> probes.Probes | None:
    settings = service.settings
    if settings.metrics_port == 0:
        return None
    return await probes.start(service, host=settings.metrics_host, port=settings.metrics_port)


def _log_unhandled(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an exception that no task awaited, with its traceback, in place of asyncio's own text."""
    log.error("unhandled", detail=context["message"], exc_info=context.get("exception"))


def _cause(error: Exception) -> Exception:
    """The exception inside nested groups of one, as task groups raise them."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def settings_or_exit(name: str, *, all_shards: bool = False, needs: Sequence[str] = ()) -> Settings:
    """The settings of the environment. Otherwise log one line with all problems and exit with status 2.

    `all_shards`: every shard must have its database. `needs` are optional settings without which it cannot work.
    """
    try:
        settings = load_settings()
        if all_shards:
            settings.require_all_shards()
        settings.require(needs)
        return settings
    except SettingsError as error:
        configure_logging(name, "INFO")
        log.error("fatal", error=str(error))
        raise SystemExit(2) from None


def run(name: str, settings: Settings, main: Main) -> NoReturn:
    """Run `main`, then exit the process: status 0, or 1 after an exception or an unfinished drain."""
    configure_logging(name, settings.log_level)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(name, settings, main))
    except Exception as raised:
        error = _cause(raised)
        log.error("fatal", error=f"{type(error).__name__}: {error}", exc_info=error)
        sys.exit(1)
    sys.exit(0)
