"""Owns a stack: starts its servers and processes, restarts those that end, stops all in order.

One thread, no polling: it sleeps until a child ends, a signal arrives, or a restart is due. A process that keeps ending
by itself is restarted after growing delays, up to `RESTART_S_MAX`, without a limit on restarts. A killed process is
restarted within a second, however often it is killed. If the supervisor itself is killed, the kernel ends its children.

Run as `python -m devstack.supervisor STATE_DIR EDGE_PORT BACKOFFICE_PORT`. It takes the folder's lock, writes
`stack.json` when all processes are ready, and ends on SIGTERM or SIGINT.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import redis

from devstack.children import log_tail, spawn
from devstack.full import plan_of
from devstack.plan import Plan
from devstack.program import Program
from devstack.server_process import ServerError
from devstack.state import StateFolder
from domain.topology import lane_stream_key
from ops.stack_file import Stack
from runtime.process.errors import OperatorError

READY_S_MAX = 60.0
FAILING_S_MAX = 20.0  # while the stack starts: for a process that has ended FAILED_STARTS_MAX times already
ORPHAN_S_MAX = 20.0
DRAIN_S_MAX = 15.0
RESTART_S_FIRST = 0.1  # before the second restart in a row; the first one has no delay
RESTART_S_MAX = 10.0
KILLED_RESTART_S_MAX = 0.5  # for a process that was killed: it did not fail by itself
PRIVATE_UMASK = 0o077
HELD_LOOK_S = 0.2  # between looks whether a held server may start
STEADY_S_MIN = 10.0  # a process that ran for this long is restarted without delay
FAILED_STARTS_MAX = 5


class Stopping(Exception):
    """SIGTERM or SIGINT arrived during a wait."""


@dataclass(slots=True)
class Child:
    """A program, and the process that runs it; None between an end and a restart."""

    program: Program
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    restarts_in_a_row: int = 0

    def start(self) -> None:
        """Start the process."""
        program = self.program
        self.process = spawn(
            program.argv, env=program.env, log=program.log, cwd=program.cwd, user=program.user,
            orphan_signal=program.stop_signal,
        )  # fmt: skip
        self.started_at = time.monotonic()

    def start_or_later(self) -> None:
        """Start the process again. When the machine does not allow it, such as with a full disk, try again later."""
        try:
            self.start()
        except OSError as error:
            self.restart_at = time.monotonic() + RESTART_S_MAX
            _say(f"{self.program.name} cannot be started: {error}; next attempt in {RESTART_S_MAX:.0f} s")

    def buried(self) -> bool:
        """Whether the process has ended since the last call; if so, kill the rest of its group, schedule a restart."""
        if self.process is None or self.process.poll() is None:
            return False
        status = self.process.returncode
        self.kill_group()
        now = time.monotonic()
        if now - self.started_at >= STEADY_S_MIN:
            self.restarts_in_a_row = 0
        delay_s = restart_delay_s(self.restarts_in_a_row, killed=status == -signal.SIGKILL)
        self.restart_at = now + delay_s
        self.restarts_in_a_row += 1
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        _say(f"{self.program.name} {how}; restart {self.restarts_in_a_row} in a row, in {delay_s:.1f} s")
        return True

    def kill_group(self) -> None:
        """Send SIGKILL to the rest of the process's group, then forget the process."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


def restart_delay_s(restarts_in_a_row: int, *, killed: bool) -> float:
    """Delay before the next restart of a process that has ended: 0, 0.1, 0.2, 0.4 ... 10 s; at most 0.5 s if killed."""
    if restarts_in_a_row == 0:
        return 0.0
    longest_s = KILLED_RESTART_S_MAX if killed else RESTART_S_MAX
    return float(min(longest_s, RESTART_S_FIRST * 2 ** min(restarts_in_a_row - 1, 16)))


class Supervisor:
    """A running stack. `run` is its whole lifecycle."""

    def __init__(self, plan: Plan, on_ready: Callable[[Stack], None]) -> None:
        """`plan` lists the programs; `on_ready` is called once, when all are ready."""
        self.plan = plan
        self._on_ready = on_ready
        self.children: dict[str, Child] = {}
        self._servers: list[str] = []
        self.stack: Stack | None = None
        self._stop_asked = False
        self._wakeup_read, self._wakeup_write = os.pipe()
        for descriptor in (self._wakeup_read, self._wakeup_write):
            os.set_blocking(descriptor, False)

    def run(self) -> None:
        """Start the stack, run it until a stop signal, stop it. Raises OperatorError if it does not start."""
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # wakes `_sleep`
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask_to_stop)
        try:
            self._come_up()
            while True:
                self._sleep(self._until_next_restart_s())
                self._tend()
        except Stopping:
            _say("stopping")
        finally:
            self._go_down()

    def _ask_to_stop(self, *_: object) -> None:
        self._stop_asked = True

    def _come_up(self) -> None:
        folder = self.plan.folder
        folder.remove_stack_file()
        if left := folder.sweep(patience_s=ORPHAN_S_MAX):
            _say(f"killed processes of an earlier supervisor: {left}")
        self.plan.initialise()
        servers: list[Program] = []
        for group in self.plan.server_groups():
            for program in group:
                program.prepare()
            self._servers += [program.name for program in group]
            self._start_all(group)
            self._wait_for([program for program in group if program.is_needed_first])
            servers += group
        self.plan.prepare_databases()
        self._wait_for([program for program in servers if not program.is_needed_first])
        self.plan.prepare_carriers()
        processes = self.plan.processes()
        self._start_all(processes)
        self._wait_for((*servers, *processes))
        self.stack = self.plan.stack()
        self._publish()
        self._on_ready(self.stack)

    def _start_all(self, programs: Sequence[Program]) -> None:
        for program in programs:
            child = self.children[program.name] = Child(program)
            child.start()

    def _wait_for(self, programs: Sequence[Program]) -> None:
        for program in programs:
            self._wait(program)

    def _wait(self, program: Program) -> None:
        """Return when the child is ready. ServerError with the tail of its log if it keeps ending or takes too long."""
        child = self.children[program.name]
        began = time.monotonic()
        while not program.is_ready():
            self._sleep(0.05)
            self._tend()
            keeps_dying = child.restarts_in_a_row >= FAILED_STARTS_MAX
            if time.monotonic() - began > (FAILING_S_MAX if keeps_dying else READY_S_MAX):
                tail = log_tail(program.server_log or program.log)
                raise ServerError(f"{program.name} does not become ready; its log ends with:\n{tail}")

    def _tend(self) -> None:
        """Restart ended processes whose restart is due."""
        changed = False
        for child in self.children.values():
            changed |= child.buried()
            if child.process is None and time.monotonic() >= child.restart_at:
                if (self.plan.folder.held / child.program.name).exists():
                    child.restart_at = time.monotonic() + HELD_LOOK_S
                    continue
                child.start_or_later()
                changed = True
        if changed and self.stack is not None:
            self._publish_or_say()

    def _publish(self) -> None:
        """Write the current pids to `stack.json`; a process that waits for its restart keeps its last pid there."""
        assert self.stack is not None
        now = time.monotonic()
        for name, value in self.plan.addresses().items():
            setattr(self.stack, name, value)  # the servers of a pair may have changed roles
        for name, child in self.children.items():
            if child.process is not None:
                self.stack.processes[name] = child.process.pid
        self.stack.restarting = {
            name: {
                "restarts_in_a_row": child.restarts_in_a_row,
                "at": datetime.fromtimestamp(time.time() + child.restart_at - now, UTC).isoformat(timespec="seconds"),
            }
            for name, child in self.children.items()
            if child.process is None
        }
        self.plan.folder.write_stack(self.stack)

    def _publish_or_say(self) -> None:
        """As `_publish`. A full disk must not stop the stack: commands see older pids until the next change."""
        try:
            self._publish()
        except OSError as error:
            _say(f"stack.json is out of date: {error}")

    def _until_next_restart_s(self) -> float | None:
        due = [child.restart_at for child in self.children.values() if child.process is None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _sleep(self, seconds: float | None) -> None:
        """Sleep until a signal arrives or time is up. Raises Stopping after a stop signal."""
        if not self._stop_asked:
            select.select([self._wakeup_read], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wakeup_read, 4096):
                pass
        if self._stop_asked:
            raise Stopping

    def _go_down(self) -> None:
        """Stop the edge and the backoffice, which accept work, then the workers, which store it, then the servers."""
        folder = self.plan.folder
        folder.remove_stack_file()
        self._stop(["edge"])
        self._stop(["backoffice"])
        self._drain()
        self._stop([name for name in self.children if name not in self._servers])
        self._stop(self._servers)
        folder.sweep(patience_s=0)

    def _stop(self, names: Sequence[str]) -> None:
        """Stop these children together; SIGKILL for those that take too long."""
        stopping = [self.children[name] for name in names if name in self.children]
        stopping = [child for child in stopping if child.process is not None]
        for child in stopping:
            assert child.process is not None
            child.process.send_signal(child.program.stop_signal)
        began = time.monotonic()
        deadline = began + max((child.program.stop_s_max for child in stopping), default=0.0)
        for child in stopping:
            assert child.process is not None
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _say(f"{child.program.name} did not stop in time")
            else:
                _say(f"{child.program.name} stopped after {time.monotonic() - began:.1f} s")
            child.kill_group()

    def _drain(self) -> None:
        """Give the relay time to publish accepted orders. The rest stays in Redis's file; the next run publishes it."""
        if self.stack is None:
            return
        streams = [lane_stream_key(lane) for lane in range(self.plan.settings.lanes)]
        deadline = time.monotonic() + DRAIN_S_MAX
        try:
            with self._reservation() as client:
                while any(client.xlen(stream) for stream in streams) and time.monotonic() < deadline:
                    time.sleep(0.05)
        except (redis.RedisError, redis.exceptions.RedisClusterException) as error:
            _say(f"not drained: {error}")

    def _reservation(self) -> redis.Redis | redis.RedisCluster:
        cluster = self.plan.redis_cluster
        if cluster is None:
            return redis.Redis.from_url(self.plan.redis.url, socket_timeout=2)
        return redis.RedisCluster(port=cluster.nodes[0].port, password=cluster.password, socket_timeout=2)


def _say(text: str) -> None:
    """Log a line. On a full disk it is lost: the supervisor of a stack must not end by its own log."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} supervisor: {text}\n")
        sys.stderr.flush()


def supervise(
    folder: StateFolder,
    *,
    edge_port: int,
    backoffice_port: int,
    on_ready: Callable[[Stack], None] | None = None,
    make_plan: Callable[[StateFolder, int, int, Mapping[str, str]], Plan] = plan_of,
) -> int:
    """Run a stack in this process until a signal ends it. Returns the exit status. `make_plan` may vary its parts."""
    os.umask(PRIVATE_UMASK)  # inherited by every process of the stack
    folder.make()
    lock = folder.acquire()
    if lock is None:
        _say(f"a stack is up in {folder.path} already: stop it with `flashsale down`")
        return 1
    try:
        plan = make_plan(folder, edge_port, backoffice_port, dict(os.environ))
        Supervisor(plan, on_ready or (lambda _: _say("ready"))).run()
    except OperatorError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        os.close(lock)
    return 0


if __name__ == "__main__":
    state_dir, edge, backoffice = sys.argv[1:]
    sys.exit(supervise(StateFolder(Path(state_dir)), edge_port=int(edge), backoffice_port=int(backoffice)))
