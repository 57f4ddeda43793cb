"""Starts a supervisor process, waits for its stack, and stops it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from devstack.children import alive, log_tail
from devstack.state import StateFolder
from ops.stack_file import PROJECT, Stack, StackError

UP_S_MAX = 600.0  # a full stack on a busy machine, when it is made
DOWN_S_MAX = 120.0


def start_detached(folder: StateFolder, *, edge_port: int, backoffice_port: int) -> Stack:
    """Start a supervisor that outlives this process, without our descriptors. Returns the stack when it is ready."""
    folder.make()
    log = folder.log("supervisor")
    # Emptied: the lines of an earlier run would mix with this run's errors.
    log.touch(mode=0o600)
    with log.open("wb") as sink:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "devstack.supervisor", str(folder.path), str(edge_port), str(backoffice_port)],
            stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, cwd=PROJECT, start_new_session=True,
        )  # fmt: skip
    try:
        return wait_until_up(folder, supervisor, log)
    except BaseException:
        supervisor.terminate()
        raise


def wait_until_up(folder: StateFolder, supervisor: subprocess.Popen[bytes], log: Path) -> Stack:
    """Return the stack when the supervisor reports it ready. StackError with the end of its log if it ends first."""
    console = Console(stderr=True)
    deadline = time.monotonic() + UP_S_MAX
    with console.status("Starting servers and processes"):  # shows nothing unless stderr is a terminal
        while time.monotonic() < deadline:
            stack = folder.read_stack()
            if stack is not None and stack.supervisor == supervisor.pid:
                return stack
            if supervisor.poll() is not None:
                raise StackError(f"the stack did not come up:\n{log_tail(log).strip()}")
            time.sleep(0.05)
    raise StackError(f"the stack did not come up within {UP_S_MAX:.0f} s:\n{log_tail(log).strip()}")


def stop(folder: StateFolder) -> bool:
    """Stop a folder's stack, including processes that a killed supervisor left. Returns False if nothing was up."""
    pid = folder.supervisor_pid()
    if pid is None:
        left = folder.sweep(patience_s=0) if folder.path.exists() else []
        folder.remove_stack_file()
        return bool(left)
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_S_MAX
    with Console(stderr=True).status("Stopping, after accepted orders have reached their shards"):
        while folder.supervisor_pid() == pid or alive(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                folder.sweep(patience_s=5)
                folder.remove_stack_file()
                raise StackError(
                    f"the supervisor did not stop within {DOWN_S_MAX:.0f} s and was killed with all its processes; "
                    "accepted orders are in Redis's file, and the next `flashsale up` stores them"
                )
            time.sleep(0.05)
    return True
