"""Reads a stack's folder, `.flashsale/`: is a stack up, its addresses (`stack.json`), its keys. Writes nothing.

lock          held (flock) by the running supervisor; contains its pid
stack.json    addresses, logins and pids of a stack that is up; mode 0600, replaced atomically
keys/         token keys, mode 0600; created once

`devstack.state` writes these files.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from runtime.process.errors import OperatorError

PROJECT: Final = Path(__file__).resolve().parent.parent


class StackError(OperatorError):
    """The stack cannot do this now."""


@dataclass(slots=True)
class Stack:
    """The content of `stack.json`. Contains secrets. `metrics` maps a process to its address of /metrics and /readyz.

    `payment_secret` signs the webhooks of the stack's payment simulator, and opens the control of its behaviour.
    `payment_url`, `payment_api_key`: the simulator's address, and the key for its API; None with another provider.
    `mail_folder`: the mails that were sent, a file each.
    `edge_direct_url`: the edge's direct door; None while it is off.
    `catalogue_dsn`, `shard_dsns`: the addresses for processes, a pooler's in a full stack. Only a full stack has
    `..._direct_...` (the primaries), `..._replica_...`, `redis_replica_url`, and by the names of processes
    `postgres_servers` (maintenance databases) and `poolers` (consoles).
    `restarting`: processes that ended and wait for their restart -> `restarts_in_a_row`, `at` (RFC 3339).
    """

    edge_url: str
    edge_direct_url: str | None
    backoffice_url: str
    admin: dict[str, str] = field(repr=False)
    redis_url: str
    cache_url: str
    catalogue_dsn: str = field(repr=False)
    shard_dsns: list[str] = field(repr=False)
    queue_url: str
    event_log_url: str
    payment_secret: str = field(repr=False)
    smtp_url: str
    mail_folder: str
    metrics: dict[str, str]
    supervisor: int
    processes: dict[str, int] = field(default_factory=dict)
    restarting: dict[str, dict[str, Any]] = field(default_factory=dict)
    payment_url: str | None = None
    payment_api_key: str | None = field(default=None, repr=False)
    analytics_dsn: str | None = field(default=None, repr=False)
    catalogue_direct_dsn: str | None = field(default=None, repr=False)
    shard_direct_dsns: list[str] = field(default_factory=list, repr=False)
    catalogue_replica_dsn: str | None = field(default=None, repr=False)
    shard_replica_dsns: list[str] = field(default_factory=list, repr=False)
    redis_replica_url: str | None = field(default=None, repr=False)
    postgres_servers: dict[str, str] = field(default_factory=dict, repr=False)
    poolers: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def order_url(self) -> str:
        """The edge's fastest door."""
        return self.edge_direct_url or self.edge_url

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """The content of a file that this code wrote."""
        return cls(**document)


@dataclass(frozen=True, slots=True)
class StackFolder:
    """The folder of one stack. `path` is absolute: a stack's processes are recognised by it."""

    path: Path

    @classmethod
    def at(cls, state_dir: Path | None) -> Self:
        """The folder that `--state-dir` names; without one, `.flashsale/` of the project."""
        return cls(state_dir.resolve() if state_dir is not None else PROJECT / ".flashsale")

    @property
    def token_keys(self) -> Path:
        """The key ring of buyers' tokens."""
        return self.path / "keys" / "token-keys.json"

    @property
    def staff_key(self) -> Path:
        """The private key of staff tokens."""
        return self.path / "keys" / "staff-key.pem"

    @property
    def vapid_key(self) -> Path:
        """The private key of web push."""
        return self.path / "keys" / "vapid-key"

    @property
    def stack_file(self) -> Path:
        """`stack.json`."""
        return self.path / "stack.json"

    @property
    def lock_file(self) -> Path:
        """Locked by the running supervisor."""
        return self.path / "lock"

    def supervisor_pid(self) -> int | None:
        """The running supervisor, None when there is none. Trusts the lock, not files that a crash left."""
        try:
            descriptor = os.open(self.lock_file, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(os.pread(descriptor, 32, 0) or b"0") or None
        finally:
            os.close(descriptor)
        return None

    def read_stack(self) -> Stack | None:
        """The stack that is up in this folder, None when none is or it is not ready yet."""
        pid = self.supervisor_pid()
        if pid is None:
            return None
        try:
            stack = Stack.from_document(json.loads(self.stack_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        return stack if stack.supervisor == pid else None

    def require_stack(self) -> Stack:
        """The stack that is up; StackError when there is none."""
        stack = self.read_stack()
        if stack is None:
            raise StackError(f"no stack is up in {self.path}: start one with `flashsale up --detach`")
        return stack

    def settings_env(self, stack: Stack) -> dict[str, str]:
        """FLASHSALE_* that point a process at this stack."""
        return {
            "FLASHSALE_REDIS_URL": stack.redis_url,
            "FLASHSALE_CACHE_URL": stack.cache_url,
            "FLASHSALE_QUEUE_URL": stack.queue_url,
            "FLASHSALE_EVENT_LOG_URL": stack.event_log_url,
            "FLASHSALE_CATALOGUE_DSN": stack.catalogue_dsn,
            "FLASHSALE_SHARD_DSNS": ",".join(stack.shard_dsns),
            # Always set: those of another deployment in the caller's environment would send migrations there.
            "FLASHSALE_CATALOGUE_DIRECT_DSN": stack.catalogue_direct_dsn or stack.catalogue_dsn,
            "FLASHSALE_SHARD_DIRECT_DSNS": ",".join(stack.shard_direct_dsns or stack.shard_dsns),
            **({} if stack.catalogue_replica_dsn is None else self._replica_env(stack)),
            **({} if stack.analytics_dsn is None else {"FLASHSALE_ANALYTICS_DSN": stack.analytics_dsn}),
            "FLASHSALE_TOKEN_KEYS_FILE": str(self.token_keys),
        }

    def _replica_env(self, stack: Stack) -> dict[str, str]:
        assert stack.catalogue_replica_dsn is not None
        return {
            "FLASHSALE_CATALOGUE_REPLICA_DSN": stack.catalogue_replica_dsn,
            "FLASHSALE_SHARD_REPLICA_DSNS": ",".join(stack.shard_replica_dsns),
        }

    def payment_env(self, stack: Stack) -> dict[str, str]:
        """FLASHSALE_* of a process that speaks to the stack's payment simulator; empty without one."""
        if stack.payment_url is None or stack.payment_api_key is None:
            return {}
        return {
            "FLASHSALE_PAYMENT_PROVIDER": "simulated",
            "FLASHSALE_PAYMENT_URL": stack.payment_url,
            "FLASHSALE_PAYMENT_API_KEY": stack.payment_api_key,
            "FLASHSALE_PAYMENT_WEBHOOK_SECRETS": stack.payment_secret,
        }
