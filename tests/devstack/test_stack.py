"""The embedded stack in use: up, status, kills, a second up, down."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis

from devstack.children import alive
from devstack.plan import SIMULATOR, WORKERS
from devstack.program import responds
from devstack.state import StateFolder
from devstack.supervisor import FAILED_STARTS_MAX
from tests.fixtures.fix_stack import ROOT, RunningStack, eventually, flashsale

NAMES = ["redis", "postgres", "mailbox", SIMULATOR, "backoffice", *WORKERS, "edge"]


def test_stack_file_names_everything_that_runs(running_stack: RunningStack) -> None:
    assert stat.S_IMODE(running_stack.folder.stack_file.stat().st_mode) == 0o600
    stack = running_stack.stack
    assert sorted(stack.processes) == sorted(NAMES)
    assert all(alive(pid) for pid in stack.processes.values())
    assert responds(f"{stack.edge_url}/readyz") and responds(f"{stack.backoffice_url}/readyz")
    for dsn in (stack.catalogue_dsn, *stack.shard_dsns):
        psycopg.connect(dsn).close()
    with redis.Redis.from_url(stack.redis_url) as client:
        assert client.config_get("appendfsync") == {"appendfsync": "always"}


def test_background_processes_keep_no_descriptor_of_the_caller(running_stack: RunningStack) -> None:
    for pid in (running_stack.stack.supervisor, *running_stack.stack.processes.values()):
        standard = [os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)]
        assert standard[0] == "/dev/null"
        assert {Path(target).parent for target in standard[1:]} == {running_stack.folder.logs}


def test_no_password_in_command_lines_or_logs(running_stack: RunningStack) -> None:
    stack = running_stack.stack
    urls = (stack.redis_url, stack.catalogue_dsn)
    secrets = [stack.admin["password"], stack.payment_secret, *(str(urlsplit(url).password) for url in urls)]
    assert all(len(secret) >= 20 for secret in secrets)
    texts = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in stack.processes.values()]
    texts += [path.read_text(errors="replace") for path in running_stack.folder.logs.iterdir()]
    assert not [text for text in texts if any(secret in text for secret in secrets)]


def test_other_local_users_read_nothing(running_stack: RunningStack) -> None:
    """Neither a file nor Redis: logs, append-only file and mails contain addresses."""
    folder = running_stack.folder
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    data = folder.postgres.data
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    own = [path for path in folder.path.rglob("*") if not path.is_symlink()]
    assert {"redis.log", "edge.log"} <= {path.name for path in own}
    assert not [path for path in own if stat.S_IMODE(path.stat().st_mode) & 0o077]
    port = urlsplit(running_stack.stack.redis_url).port
    assert port is not None
    with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


@pytest.mark.parametrize("name", NAMES)
def test_killed_process_is_back_under_a_new_pid(running_stack: RunningStack, name: str) -> None:
    killed = running_stack.stack.processes[name]
    os.kill(killed, signal.SIGKILL)

    def is_back() -> bool:
        # A new PostgreSQL ends at once while a child of the killed one still runs, and is started again.
        pid = running_stack.stack.processes[name]
        return pid != killed and alive(pid)

    eventually(is_back)
    eventually(running_stack.is_ready)
    eventually(lambda: running_stack.flashsale("status", check=False).returncode == 0)


def test_process_that_cannot_start_is_tried_for_ever_and_status_says_so(running_stack: RunningStack) -> None:
    """Its port is taken: it fails more often than a starting stack tolerates, and then runs again."""
    name = "expiry-0"
    host, _, port = running_stack.stack.metrics[name].rpartition("//")[2].partition(":")

    def restarts() -> int:
        waiting = running_stack.stack.restarting.get(name)
        return int(waiting["restarts_in_a_row"]) if waiting else 0

    os.kill(running_stack.stack.processes[name], signal.SIGKILL)
    eventually(lambda: not responds(f"http://{host}:{port}/livez"))
    with socket.create_server((host, int(port))):  # long before the new process listens
        eventually(lambda: restarts() > FAILED_STARTS_MAX, patience_s=90)
        shown = running_stack.flashsale("status", check=False)
        assert shown.returncode == 1
        assert re.search(rf"^  {name} +\d+  NOT R", shown.stdout, re.MULTILINE)
    eventually(running_stack.is_ready, patience_s=60)
    eventually(lambda: running_stack.flashsale("status", check=False).returncode == 0)
    assert running_stack.stack.restarting == {}


def test_status_tells_what_runs(running_stack: RunningStack) -> None:
    answer = json.loads(running_stack.flashsale("status", "--json").stdout)
    assert answer["up"] and sorted(answer["processes"]) == sorted(NAMES)
    assert all(process["ready"] for process in answer["processes"].values())


def test_second_up_says_what_runs(running_stack: RunningStack) -> None:
    before = running_stack.stack
    done = running_stack.flashsale("up", "--detach")
    assert "up already" in done.stdout and before.edge_url in done.stdout
    assert running_stack.stack == before


def test_status_without_a_stack(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "none")
    done = flashsale(folder, "status", check=False)
    assert (done.returncode, done.stderr) == (3, "")
    assert json.loads(flashsale(folder, "status", "--json", check=False).stdout) == {"up": False}
    assert "No stack was up" in flashsale(folder, "down").stdout
    assert not folder.path.exists()


def test_an_unknown_kind_of_stack_is_wrong_usage(tmp_path: Path) -> None:
    done = flashsale(StateFolder(tmp_path / "none"), "up", "--stack", "half", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--stack" in done.stderr and "full" in done.stderr


def test_port_in_use_is_said_before_anything_starts(running_stack: RunningStack, tmp_path: Path) -> None:
    port = running_stack.stack.edge_url.rpartition(":")[2]
    done = flashsale(StateFolder(tmp_path / "other"), "up", "--detach", "--edge-port", port, check=False)
    assert done.returncode == 1
    assert f"port {port} is in use" in done.stderr and "--edge-port" in done.stderr


def test_wrong_setting_is_named_before_anything_starts(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli", "up", "--detach", "--state-dir", str(tmp_path / "s"), "--edge-port", "0",
         "--backoffice-port", "0"],
        env={**os.environ, "FLASHSALE_USER_RATE": "fast"}, capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "FLASHSALE_USER_RATE" in done.stderr and "fast" not in done.stderr


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["down", "supervisor-killed"])
def test_nothing_is_left_running(tmp_path: Path, how: signal.Signals) -> None:
    folder = StateFolder(tmp_path / "stack")
    try:
        flashsale(folder, "up", "--detach", "--edge-port", "0", "--backoffice-port", "0")
        stack = folder.require_stack()
        pids = [stack.supervisor, *stack.processes.values()]
        if how is signal.SIGKILL:
            os.kill(stack.supervisor, how)  # the kernel signals its children
        else:
            flashsale(folder, "down")
            assert not [pid for pid in pids if alive(pid)]
            assert not folder.stack_file.exists()
        eventually(lambda: not [pid for pid in pids if alive(pid)])
        assert flashsale(folder, "status", check=False).returncode == 3
    finally:
        flashsale(folder, "down", "--destroy")
    assert not folder.path.exists()
