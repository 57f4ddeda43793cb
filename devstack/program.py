"""A program of a stack: how it is started, and how it shows that it is ready. Starts nothing."""

from __future__ import annotations

import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ops.stack_file import PROJECT

PROBE_S_MAX: Final = 2.0


@dataclass(frozen=True, slots=True)
class Program:
    """A process to keep running. `ready_url` answers 200 when it is ready; None: it is ready as soon as it runs."""

    name: str
    argv: list[str]
    env: Mapping[str, str] = field(repr=False)
    log: Path
    cwd: Path = PROJECT
    user: int | None = None
    ready_url: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_s_max: float = 20.0
    prepare: Callable[[], None] = lambda: None  # once, before the first start
    answers: Callable[[], bool] | None = None  # in place of `ready_url`
    is_needed_first: bool = True  # whether the databases are prepared only when it is ready
    server_log: Path | None = None  # where the server itself logs, if not in `log`

    def is_ready(self) -> bool:
        """Whether the process answers that it is ready."""
        if self.answers is not None:
            return self.answers()
        return self.ready_url is None or responds(self.ready_url)


def responds(url: str) -> bool:
    """Whether a GET gets a 2xx in time."""
    try:
        with urllib.request.urlopen(url, timeout=PROBE_S_MAX) as answer:  # noqa: S310 - our own loopback address
            return 200 <= int(answer.status) < 300
    except (urllib.error.URLError, OSError):
        return False
