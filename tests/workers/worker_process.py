"""A worker as a real process: started with settings in its environment, killed, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

STOP_S_MAX = 30
WAIT_S_MAX = 30
ROOT = Path(__file__).parents[2]


@contextmanager
def worker_process(module: str, settings: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m <module>` with FLASHSALE_<NAME> settings; killed at the end if it still runs."""
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    environ |= {f"FLASHSALE_{name}": value for name, value in settings.items()}
    process = subprocess.Popen([sys.executable, "-m", module], env=environ, cwd=ROOT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def until(condition: Callable[[], object]) -> None:
    """Return when the condition holds; AssertionError when it takes too long."""
    deadline = time.monotonic() + WAIT_S_MAX
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def get(url: str) -> tuple[int, str]:
    """Status and text of an answer; status 0 without an answer."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - our own process
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def stop(process: subprocess.Popen[bytes]) -> int:
    """SIGTERM; the exit status."""
    process.send_signal(signal.SIGTERM)
    return process.wait(STOP_S_MAX)
