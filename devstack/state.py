"""The stack's folder, `.flashsale/`: who runs it, its secrets, its logs, and `stack.json` while it is up.

lock          held (flock) by the running supervisor, whose pid it contains
stack.json    addresses, logins and pids of a stack that is up; mode 0600, replaced atomically
secrets.json  passwords, mode 0600; made once
keys/         token keys, mode 0600; made once
data/         what Redis and PostgreSQL keep
logs/         one file per process
mail/         what was sent by e-mail, a file per mail and recipient
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
from devstack.servers import PostgresServer, RedisServer
from ops.stack_file import Stack, StackFolder

STATE_VARIABLE = "DEVSTACK_STATE"  # in the environment of every process of a stack: the folder it belongs to
_LOG_BYTES_MAX = 16 * 1024 * 1024
_LOCK_S_MAX = 0.5


@dataclass(frozen=True, slots=True)
class StateFolder(StackFolder):
    """The folder of one stack, as its supervisor writes it."""

    @property
    def logs(self) -> Path:
        """One log per process."""
        return self.path / "logs"

    @property
    def data(self) -> Path:
        """Data of the servers."""
        return self.path / "data"

    @property
    def mail(self) -> Path:
        """Mails that were sent."""
        return self.path / "mail"

    def make(self) -> None:
        """Create the folders; only their owner and, through the top one, the servers' user may look inside."""
        for folder in (self.path, self.logs, self.data):
            folder.mkdir(parents=True, exist_ok=True)
        (self.path / "keys").mkdir(mode=0o700, exist_ok=True)
        self.path.chmod(0o711)

    def log(self, name: str) -> Path:
        """The log of a process; one that has grown beyond 16 MiB is put aside first, replacing the one put aside before."""
        path = self.logs / f"{name}.log"
        if path.exists() and path.stat().st_size > _LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))
        return path

    def secret(self, name: str) -> str:
        """A random password, the same each time for this folder."""
        path = self.path / "secrets.json"
        known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if name not in known:
            known[name] = secrets.token_urlsafe(18)
            _write_private(path, known)
        return known[name]

    def acquire(self) -> int | None:
        """Become the folder's supervisor: a descriptor that holds the lock until it is closed, None if another one has it."""
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _LOCK_S_MAX
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # perhaps by somebody who only looks, in `supervisor_pid`
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
        """The stack is down."""
        self.stack_file.unlink(missing_ok=True)

    def sweep(self, *, patience_s: float) -> list[int]:
        """End what a killed supervisor left running; the pids that had to be killed.

        The kernel told those processes to stop when their supervisor died; they get `patience_s` to finish.
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
        """Pids of processes that carry this folder in their environment, ours apart."""
        mark = f"{STATE_VARIABLE}={self.path}".encode()
        members = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0") and alive(int(entry.name)):
                    members.append(int(entry.name))
            except OSError:  # gone, or another user's
                continue
        return members

    def destroy(self) -> None:
        """Remove the folder and what the servers keep elsewhere. Nothing may be running in it."""
        assert self.supervisor_pid() is None
        if self.path.exists():
            PostgresServer(self.data / "postgres", port=0).destroy()
            RedisServer(self.data / "redis", port=0).destroy()
            shutil.rmtree(self.path)


def _write_private(path: Path, document: dict[str, Any]) -> None:
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=2)
        file.write("\n")
    staging.replace(path)
