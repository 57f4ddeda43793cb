"""A server that tests and tools start by themselves: the wait until it is ready, and its end.

In a stack, `devstack.supervisor` starts servers by their `argv`, and restarts those that end.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from devstack.children import log_tail
from runtime.process.errors import OperatorError

READY_S_MAX: Final = 30.0
STOP_S_MAX: Final = 20.0
_LOOK_S: Final = 0.02


class ServerError(OperatorError):
    """A server did not start or did not stop; the message ends with the tail of its log."""


class ServerProcess:
    """`process` is the running server, None before its start and after its end."""

    process: subprocess.Popen[bytes] | None

    def await_ready(
        self, answers: Callable[[], bool], *, name: str, logs: tuple[Path, ...], s_max: float = READY_S_MAX
    ) -> None:
        """Return when it answers. ServerError, with the ends of its logs, when it has ended or takes too long."""
        deadline = time.monotonic() + s_max
        problem = f"not ready within {s_max:.0f} s"
        while time.monotonic() < deadline:
            if self.process is not None and (status := self.process.poll()) is not None:
                problem = f"ended with status {status}"
                break
            if answers():
                return
            time.sleep(_LOOK_S)
        raise ServerError(f"{name}: {problem}: {''.join(map(log_tail, logs))}")

    def kill(self) -> None:
        """End the server with SIGKILL, like a crash."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        """Send SIGTERM and wait; SIGKILL when that takes too long."""
        self.end(signal.SIGTERM, then=signal.SIGKILL, s_max=STOP_S_MAX)

    def end(self, first: signal.Signals, *, then: signal.Signals, s_max: float) -> None:
        """Send the first signal, and the other one when the server has not ended after `s_max`. Wait for the end."""
        if self.process is None:
            return
        self.process.send_signal(first)
        try:
            self.process.wait(s_max)
        except subprocess.TimeoutExpired:
            self.process.send_signal(then)
            self.process.wait(STOP_S_MAX)
        self.process = None
