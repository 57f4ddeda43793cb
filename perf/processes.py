"""Processes: their time and memory, read from /proc; halting and ending them. Linux only; measures nothing by itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

END_S_MAX = 20.0
HALT_S_MAX = 5.0  # a signal is delivered when the process runs next, or comes back from the disk


def state(pid: int) -> str:
    """Its state as in proc(5): R, S or D while it lives, T when it is stopped; X when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    pids = [pid]
    for found in pids:
        try:
            for task in Path(f"/proc/{found}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended, or one of its threads has
    return pids


def cpu_us(pids: Iterable[int]) -> float:
    """Processor time spent so far, user and system, in microseconds, by processes and by children they have buried.

    The kernel counts in ticks of 10 ms. A process that ends meanwhile is left out: its parent answers for it.
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
    """`resident`: all pages in memory. `anonymous`: those of them that belong to no file, the heap and the arenas."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kilobytes = {
        name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in rollup.splitlines()[1:])
    }
    return {"resident": kilobytes["Rss"] * 1024, "anonymous": kilobytes["Anonymous"] * 1024}


@contextlib.contextmanager
def halted(pids: Iterable[int]) -> Iterator[None]:
    """The processes, with all below them, get no processor time while the block runs (SIGSTOP, afterwards SIGCONT)."""
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
            with contextlib.suppress(ProcessLookupError):  # whoever ended meanwhile
                os.kill(pid, signal.SIGCONT)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to what `devstack.children.spawn` started; SIGKILL to what is left of its session after `END_S_MAX`."""
    process.terminate()
    try:
        process.wait(END_S_MAX)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
