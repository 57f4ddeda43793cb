"""Processes that end with their parent, and ports that stay free."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devstack.children import PORTS_VARIABLE, alive, free_port, log_tail, port_is_free, spawn
from devstack.program import Program
from devstack.supervisor import Child

_PARENT = """
import os, sys, time
from pathlib import Path
from devstack.children import spawn
child = spawn(["/bin/sleep", "600"], env={}, log=Path(sys.argv[1]))
print(child.pid, flush=True)
time.sleep(600)
"""


def _gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


def test_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.send_signal(signal.SIGKILL)
    assert _gone(child)


def test_child_has_none_of_our_descriptors(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)  # noqa: FBT003 - positional only
    child = spawn(["/bin/sh", "-c", "ls -l /proc/self/fd"], env={"PATH": "/usr/bin:/bin"}, log=tmp_path / "log")
    assert child.wait(10) == 0
    os.close(read)
    os.close(write)
    targets = [line.split(" -> ")[1] for line in log_tail(tmp_path / "log").splitlines() if " -> " in line]
    assert not [target for target in targets if target.startswith(("pipe:", "socket:"))]


def test_free_port_is_out_of_reach_of_outgoing_connections() -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    ports = {free_port() for _ in range(50)}
    assert all(port_is_free(port) for port in ports)
    if low > 16_000:
        assert max(ports) < low


def test_listening_port_is_not_free() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        assert not port_is_free(sock.getsockname()[1])


def test_a_process_that_the_machine_cannot_start_now_is_started_later(tmp_path: Path) -> None:
    """The error ended the supervisor, and with it every other process of the stack."""
    place = tmp_path / "not there yet"
    child = Child(Program("sleeper", ["/bin/sleep", "600"], {}, place / "log", cwd=tmp_path))
    child.start_or_later()
    assert child.process is None and child.restart_at > time.monotonic()
    place.mkdir()
    child.start_or_later()
    assert child.process is not None
    child.kill_group()


def test_ports_of_one_plan_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server on them yet: chosen at random from 120, two of 60 would be the same."""
    monkeypatch.setenv(PORTS_VARIABLE, "21000-21119")
    chosen = [free_port() for _ in range(60)]
    assert len(set(chosen)) == len(chosen)
