"""Processes: their CPU time and memory from /proc; halting and ending them. Linux only."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

END_S_MAX = 20.0
HALT_S_MAX = 5.0  # a signal takes effect when the process runs next, or returns from the disk


def state(pid: int) -> str:
    """The state by proc(5): R, S or D while it lives, T when it is stopped; X when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def tree(pid: int) -> list[int]:
    """The process and all its descendants."""
    pids = [pid]
    for found in pids:
        try:
            for task in Path(f"/proc/{found}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # the process, or one of its threads, has just ended
    return pids


def cpu_us(pids: Iterable[int]) -> float:
    """CPU time so far, user and system, in microseconds, of the processes and of their children that ended.

    The kernel counts in ticks of 10 ms. Skips processes that end meanwhile: their parents include their time.
    """
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK") * 1e6


def memory_bytes(pid: int) -> dict[str, int]:
    """`resident`: all pages in memory. `anonymous`: those without a file, which are the heap and the arenas."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kilobytes = {
        name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in rollup.splitlines()[1:])
    }
    return {"resident": kilobytes["Rss"] * 1024, "anonymous": kilobytes["Anonymous"] * 1024}


@contextlib.contextmanager
def halted(pids: Iterable[int]) -> Iterator[None]:
    """Stop the processes and all their descendants while the block runs (SIGSTOP, then SIGCONT)."""
    stopped: list[int] = []
    try:
        for pid in [each for parent in pids for each in tree(parent)]:
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)
        deadline = time.monotonic() + HALT_S_MAX
        while any(state(pid) in "RSD" for pid in stopped) and time.monotonic() < deadline:
            time.sleep(0.001)
        yield
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):  # a process that ended meanwhile
                os.kill(pid, signal.SIGCONT)


def end(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to a process of `devstack.children.spawn`; SIGKILL to the rest of its session after `END_S_MAX`."""
    process.terminate()
    try:
        process.wait(END_S_MAX)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
