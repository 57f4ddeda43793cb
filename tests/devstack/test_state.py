"""The stack's folder: one supervisor holds the lock, files are private, files of a crashed stack are not trusted."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

from devstack import state
from devstack.children import alive, spawn
from devstack.servers import PostgresServer
from devstack.state import STATE_VARIABLE, StateFolder
from devstack.supervisor import RESTART_S_MAX, restart_delay_s
from ops.stack_file import Stack, StackError
from runtime.process.settings import overrule


def _stack(supervisor: int) -> Stack:
    return Stack(
        edge_url="http://edge", edge_direct_url="http://direct", backoffice_url="http://backoffice",
        admin={"email": "a@b.c", "password": "p"},
        redis_url="redis://r", cache_url="redis://c", catalogue_dsn="postgresql://c", shard_dsns=["postgresql://s"],
        queue_url="redis://q", event_log_url="redis://e", payment_secret="secret",
        smtp_url="smtp://m", mail_folder="/m", metrics={}, supervisor=supervisor,
        processes={"edge": 1},
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "state")
    folder.make()
    return folder


def test_only_one_supervisor_has_the_lock(folder: StateFolder) -> None:
    assert folder.supervisor_pid() is None
    lock = folder.acquire()
    assert lock is not None
    assert folder.acquire() is None
    assert folder.supervisor_pid() == os.getpid()
    os.close(lock)
    assert folder.supervisor_pid() is None


def test_stack_file_is_private_and_believed_only_while_its_supervisor_runs(folder: StateFolder) -> None:
    folder.write_stack(_stack(os.getpid()))
    assert stat.S_IMODE(folder.stack_file.stat().st_mode) == 0o600
    assert folder.read_stack() is None  # the lock is free: a crash left the file
    with pytest.raises(StackError, match="no stack is up"):
        folder.require_stack()
    lock = folder.acquire()
    assert lock is not None
    assert folder.read_stack() == _stack(os.getpid())
    folder.write_stack(_stack(os.getpid() + 1))
    assert folder.read_stack() is None  # the file of an earlier supervisor
    os.close(lock)


def test_stack_file_has_every_member_of_the_contract() -> None:
    assert asdict(_stack(1)).keys() >= {
        "edge_url", "edge_direct_url", "backoffice_url", "admin", "redis_url", "cache_url", "catalogue_dsn",
        "shard_dsns", "queue_url", "event_log_url", "payment_secret", "processes",
    }  # fmt: skip


def test_secrets_stay_the_same_and_are_private(folder: StateFolder) -> None:
    assert folder.secret("one") == folder.secret("one") != folder.secret("other")
    assert stat.S_IMODE((folder.path / "secrets.json").stat().st_mode) == 0o600


def test_secrets_are_not_in_representations() -> None:
    assert "secret" not in repr(_stack(1)) and "password" not in repr(_stack(1))


def test_sweep_ends_what_belongs_to_the_folder_and_nothing_else(folder: StateFolder, tmp_path: Path) -> None:
    ours = spawn(["/bin/sleep", "600"], env={STATE_VARIABLE: str(folder.path)}, log=tmp_path / "log")
    another = spawn(["/bin/sleep", "600"], env={STATE_VARIABLE: str(tmp_path / "another")}, log=tmp_path / "log")
    assert folder.sweep(patience_s=0) == [ours.pid]
    assert alive(another.pid) and not alive(ours.pid)
    another.kill()
    another.wait()
    ours.wait()


def test_log_that_has_grown_is_put_aside(folder: StateFolder) -> None:
    path = folder.log("edge")
    path.write_bytes(b"x" * (16 * 1024 * 1024 + 1))
    assert folder.log("edge") == path
    assert not path.exists()
    assert path.with_suffix(".log.1").stat().st_size == 16 * 1024 * 1024 + 1


def test_only_the_owner_enters_the_folder(folder: StateFolder) -> None:
    folder.path.chmod(0o711)  # as an earlier version left it
    folder.make()
    for path in (folder.path, folder.logs, folder.data, folder.path / "keys"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_destroy_leaves_nothing_where_the_folder_was_closed(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.make()
    tmp_path.chmod(0o700)
    (folder.data / "postgres").mkdir()
    data = PostgresServer(folder.data / "postgres").data
    data.mkdir()
    folder.destroy()
    assert not folder.path.exists()
    assert not data.parent.exists()  # as root: a folder that PostgreSQL's own user can enter


@pytest.mark.skipif(os.geteuid() != 0, reason="only root keeps data apart from the project's folder")
def test_orphaned_place_is_removed_by_the_next_server(tmp_path: Path) -> None:
    for name in ("killed", "running", "next"):
        (tmp_path / name).mkdir()
    tmp_path.chmod(0o700)
    killed, running = (PostgresServer(tmp_path / name).data.parent for name in ("killed", "running"))
    shutil.rmtree(tmp_path / "killed")
    following = PostgresServer(tmp_path / "next")
    assert following.data.parent.exists()
    assert not killed.exists() and running.exists()
    for name in ("running", "next"):
        PostgresServer(tmp_path / name).destroy()
    assert not running.exists()


def test_restarts_are_at_once_first_and_bounded_in_a_crash_loop() -> None:
    delays = [restart_delay_s(row, killed=False) for row in range(2000)]
    assert delays[:5] == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert delays == sorted(delays) and delays[-1] == RESTART_S_MAX


def test_what_is_killed_is_back_within_a_second_however_often() -> None:
    delays = [restart_delay_s(row, killed=True) for row in range(2000)]
    assert delays[:5] == [0.0, 0.1, 0.2, 0.4, 0.5] and max(delays) == 0.5


def test_zombie_is_not_alive() -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not alive(process.pid)


def test_a_value_of_the_stack_replaces_both_ways_to_set_it() -> None:
    environ = {"FLASHSALE_CATALOGUE_DSN_FILE": "theirs", "FLASHSALE_TOKEN_KEYS_FILE": "theirs", "HOME": "kept"}
    ours = {"FLASHSALE_CATALOGUE_DSN": "ours", "FLASHSALE_TOKEN_KEYS_FILE": "ours"}
    assert overrule(environ, ours) == {**ours, "HOME": "kept"}


def test_a_full_disk_is_said_before_anything_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor ended without a word: its log was on the same disk."""
    monkeypatch.setattr(state, "SPACE_MB_MIN", 1 << 40)
    folder = StateFolder(tmp_path / "new" / "state")
    with pytest.raises(StackError, match=r"has \d+ MB of free space, a stack needs"):
        folder.make()
    assert list(tmp_path.iterdir()) == []
