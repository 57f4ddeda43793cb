"""A worker as a real process: started with settings in its environment, killed, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

STOP_S_MAX = 30
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


def stop(process: subprocess.Popen[bytes]) -> int:
    """SIGTERM; the exit status."""
    process.send_signal(signal.SIGTERM)
    return process.wait(STOP_S_MAX)
