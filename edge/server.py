"""The server process: Granian with the edge's limits, and a drain before Granian's own stop.

Granian stops by closing its listener and finishing requests in flight. It also closes idle keep-alive connections at
once, so a client that is just sending on one would see a failed request. Therefore workers drain first (SIGUSR1):
`/readyz` fails, every answer closes its connection, and a worker stops after a while without requests.
"""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import signal
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.mp import MPServer, WorkerProcess

from edge import worker
from edge.metrics import worker_is_started
from edge.worker import Ports
from runtime.process.settings import Settings

_log = structlog.get_logger("edge.server")

HEADER_READ_MS = 30_000  # also the longest idle time of a connection between requests
HEADERS_SIZE_MAX = 64 * 1024
BACKLOG_MAX = 65_535
BACKLOG_MIN = 4096  # a full backlog drops buyers' packets, and they try again after a second
PORT_WAIT_S = 2.0  # workers of a killed predecessor hold the port for a moment
KILL_AFTER_S = 5  # after the drain: then a worker that still runs is killed
RESPAWN_S_FIRST = 0.1  # before the second respawn in a row of a worker; the first is immediate
RESPAWN_S_MAX = 5.0
RESPAWN_STEADY_S = 5.5  # a worker that lived this long is respawned at once; the same limit as Granian's
_PR_SET_PDEATHSIG = 1


class PortUnavailable(Exception):
    """The edge cannot listen on its address. The message gives the reason."""


class EdgeServer(MPServer):
    """Granian's multi-process server. The workers share `folder` (metrics)."""

    def __init__(self, settings: Settings, *, ports: Ports, folder: Path) -> None:
        # Spawned workers share nothing with the threads of this process; forked ones would.
        multiprocessing.set_start_method("spawn", force=True)
        super().__init__(
            target="edge.worker",
            address=settings.edge_host,
            port=ports.granian,
            interface=Interfaces.RSGI,
            workers=settings.edge_workers,
            loop=Loops.uvloop,
            http=HTTPModes.http1,
            websockets=False,
            backlog=min(BACKLOG_MAX, max(BACKLOG_MIN, settings.edge_connections_max)),
            backpressure=settings.edge_connections_max,
            http1_settings=HTTP1Settings(header_read_timeout=HEADER_READ_MS, max_buffer_size=HEADERS_SIZE_MAX),
            log_dictconfig={"loggers": {"_granian": {"handlers": [], "propagate": True}}, "handlers": {}},
            log_level=LogLevels.warning if settings.log_level == "WARNING" else LogLevels(settings.log_level.lower()),
            log_access=False,
            respawn_failed_workers=True,
            workers_kill_timeout=KILL_AFTER_S,
        )
        self._settings = settings
        self._folder = folder
        self._ports = ports
        self._respawned_at: dict[int, float] = {}
        self._respawns_in_a_row: dict[int, int] = {}

    def _spawn_worker(  # type: ignore[override]  # Granian's MPServer has three arguments, too
        self,
        idx: int,
        target: Any,
        callback_loader: Any,  # noqa: ARG002
    ) -> WorkerProcess:
        loader = partial(_load, self._settings, idx, self._folder, os.getpid(), self._ports)
        return super()._spawn_worker(idx, target, loader)

    def _respawn_workers(self, workers: list[int], spawn_target: Any, target_loader: Any, delay: float = 0) -> None:
        """Respawn dead workers, later each time for one that keeps dying.

        Granian itself ends the whole edge, healthy workers included, when a worker dies soon after its respawn. This
        continues while one worker is alive.
        """
        now = time.monotonic()
        for idx in workers:
            soon = now - self._respawned_at.get(idx, -RESPAWN_STEADY_S) < RESPAWN_STEADY_S
            self._respawns_in_a_row[idx] = self._respawns_in_a_row.get(idx, 0) + 1 if soon else 0
        in_a_row = max(self._respawns_in_a_row[idx] for idx in workers)
        if in_a_row:
            self.main_loop_interrupt.wait(min(RESPAWN_S_MAX, RESPAWN_S_FIRST * 2 ** min(in_a_row - 1, 16)))
        if self.interrupt_signal:
            return
        super()._respawn_workers(workers, spawn_target, target_loader, delay)
        self._respawned_at.update(dict.fromkeys(workers, time.monotonic()))
        others: list[Any] = self.wrks
        if any(process.is_alive() for process in others if process.idx not in workers):
            self.respawned_wrks.clear()

    def shutdown(self, exit_code: int = 0) -> None:
        """Drain, then stop through Granian."""
        draining: list[Any] = []
        workers: list[Any] = self.wrks
        for process in workers:
            # A worker that is still starting ignores the signal, and has no request to finish.
            if process.is_alive() and worker_is_started(self._folder, process.idx, pid=process.inner.pid):
                process.interrupt_by_parent = True  # tells Granian that its end is expected
                os.kill(process.inner.pid, signal.SIGUSR1)
                draining.append(process)
        deadline = time.monotonic() + self._settings.drain_ms / 1000 + KILL_AFTER_S
        for process in draining:
            process.join(max(0.0, deadline - time.monotonic()))
        super().shutdown(exit_code)  # type: ignore[no-untyped-call]


def _load(settings: Settings, idx: int, folder: Path, parent: int, ports: Ports) -> Any:
    """Build the application in a worker process."""
    # A worker that outlives its killed main process would hold the port.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(1)
    _schedule_in_batches()
    return worker.build(settings, number=idx, folder=folder, ports=ports)


def _schedule_in_batches() -> None:
    """Let a thread of this worker run on when another one becomes runnable (SCHED_BATCH, which needs no privilege).

    Granian's threads wake each other for each request. Without the switch between them an order costs a quarter less
    CPU time (measured with `appendfsync always` and 128 connections: 24 instead of 34 us, 25% more orders).
    """
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:
        _log.warning("scheduling_not_changed", error=str(error))  # a sandbox may forbid it: slower, nothing else


def claim_port(host: str, port: int) -> int:
    """The port (a free one for 0) once it accepts a listener. Raises PortUnavailable after `PORT_WAIT_S`.

    Workers listen with SO_REUSEPORT. Without this check they would silently share the port with another edge of the
    same user.
    """
    deadline = time.monotonic() + PORT_WAIT_S
    while True:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen(1)
                claimed: int = probe.getsockname()[1]
            return claimed
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise PortUnavailable(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
            time.sleep(0.1)
