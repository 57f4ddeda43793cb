"""The stack's folder, `.flashsale/`, as its supervisor writes it: lock, `stack.json`, secrets, logs.

lock          held (flock) by the running supervisor; contains its pid
stack.json    addresses, logins and pids of a stack that is up; mode 0600, replaced atomically
secrets.json  passwords, mode 0600; created once
keys/         token keys, mode 0600; created once
data/         data of Redis and PostgreSQL; as root, those of PostgreSQL and PgBouncer are beside the folder (`place`)
logs/         one file per process
mail/         mails that were sent, a file per mail and recipient

`ops.stack_file` reads it.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from devstack.children import alive
from devstack.pgbouncer import PgBouncer
from devstack.servers import PostgresServer
from ops.stack_file import Stack, StackError, StackFolder

STATE_VARIABLE = "DEVSTACK_STATE"  # in the environment of every process of a stack: the stack's folder
SPACE_MB_MIN = 64  # PostgreSQL cannot even start with less
_LOG_BYTES_MAX = 16 * 1024 * 1024
_LOCK_S_MAX = 0.5


@dataclass(frozen=True, slots=True)
class StateFolder(StackFolder):
    """The folder of one stack, with write access."""

    @property
    def logs(self) -> Path:
        """Folder of the logs, one per process."""
        return self.path / "logs"

    @property
    def data(self) -> Path:
        """Folder of the servers' data."""
        return self.path / "data"

    @property
    def postgres(self) -> PostgresServer:
        """The folder's PostgreSQL."""
        return PostgresServer(self.data / "postgres", port=0, outside=self.postgres_place)

    @property
    def postgres_place(self) -> Path:
        """Beside the folder: the data of PostgreSQL when it runs as another user (as root)."""
        return self.place("postgres")

    def place(self, server: str) -> Path:
        """Beside the folder: the files of a server that runs as another user (as root)."""
        return self.path.with_name(f"{self.path.name}-{server}")

    @property
    def held(self) -> Path:
        """Folder of marks, a file each: the supervisor does not start a server with a mark (failover)."""
        return self.path / "held"

    @property
    def mail(self) -> Path:
        """Folder of the mails that were sent."""
        return self.path / "mail"

    def make(self) -> None:
        """Create the folders. Only their owner can enter them, also those of an earlier version.

        StackError when their disk is full: a supervisor could not even log the reason of its end.
        """
        existing = next(folder for folder in (self.path, *self.path.parents) if folder.exists())
        free_mb = shutil.disk_usage(existing).free // (1024 * 1024)
        if free_mb < SPACE_MB_MIN:
            raise StackError(
                f"the disk of {self.path} has {free_mb} MB of free space, a stack needs {SPACE_MB_MIN} MB at least: "
                "free some space, or choose another folder with --state-dir"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.logs, self.data, self.path / "keys"):
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)

    def log(self, name: str) -> Path:
        """Path of a process's log. A log beyond 16 MiB is first renamed to `.log.1`, in place of an earlier one."""
        path = self.logs / f"{name}.log"
        if path.exists() and path.stat().st_size > _LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))
        return path

    def secret(self, name: str) -> str:
        """A random password, generated once per folder and name."""
        path = self.path / "secrets.json"
        known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if name not in known:
            known[name] = secrets.token_urlsafe(18)
            _write_private(path, known)
        return known[name]

    def acquire(self) -> int | None:
        """Become the folder's supervisor.

        The returned descriptor holds the lock until it is closed; None: it is taken.
        """
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _LOCK_S_MAX
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # perhaps only by a reader, in `supervisor_pid`
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    return None
                time.sleep(0.02)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        return descriptor

    def write_stack(self, stack: Stack) -> None:
        """Replace `stack.json`."""
        _write_private(self.stack_file, asdict(stack))

    def remove_stack_file(self) -> None:
        """Remove `stack.json`: the stack is down."""
        self.stack_file.unlink(missing_ok=True)

    def sweep(self, *, patience_s: float) -> list[int]:
        """End processes that a killed supervisor left. Returns the pids that had to be killed.

        The kernel signalled those processes when their supervisor died; they get `patience_s` to finish.
        """
        deadline = time.monotonic() + patience_s
        while (left := self._members()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        while any(alive(pid) for pid in left):
            time.sleep(0.02)
        return left

    def _members(self) -> list[int]:
        """Pids of processes with this folder in their environment, without ours."""
        mark = f"{STATE_VARIABLE}={self.path}".encode()
        members = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0") and alive(int(entry.name)):
                    members.append(int(entry.name))
            except OSError:  # it has ended, or belongs to another user
                continue
        return members

    def destroy(self) -> None:
        """Remove the folder, and the servers' data outside of it. No stack may be running."""
        assert self.supervisor_pid() is None
        if self.path.exists():
            for data in self.data.glob("postgres*"):
                PostgresServer(data, port=0, outside=self.place(data.name)).destroy()
            for data in self.data.glob("pgbouncer*"):
                PgBouncer(data, 0, "", port=0, outside=self.place(data.name)).destroy()
            shutil.rmtree(self.path)


def _write_private(path: Path, document: dict[str, Any]) -> None:
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=2)
        file.write("\n")
    staging.replace(path)
