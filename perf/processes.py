"""Processor time and memory of processes, read from /proc. Linux only; measures nothing by itself."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


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
