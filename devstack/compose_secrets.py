"""The secrets of `docker-compose.yml`, a file each. Passwords and keys are random; addresses contain them.

A file that exists is never changed, and what is derived from it follows it: put a key of your own there before the
first start. Compose mounts each file, with its mode, into the containers that need it. Those run as several users, so
every user may read a file; only its owner may enter the folder.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from devstack.rabbitmq import USER, VHOST
from runtime.tokens.keys import create_staff_key, create_token_keys
from runtime.tokens.vapid import create_vapid_key, load_vapid_key

FOLDER = Path(".flashsale-compose")  # beside docker-compose.yml, which names it
FOLDER_MODE = 0o700
FILE_MODE = 0o444
SHARDS = 4
_PASSWORDS = (
    "postgres_password", "replication_password", "admin_password", "webhook_key", "notice_key", "payment_api_key",
    "payment_webhook_secrets",
)  # fmt: skip
_KEYS: Mapping[str, Callable[[Path], None]] = {
    "token_keys": create_token_keys,
    "staff_key": create_staff_key,
    "vapid_key": create_vapid_key,
}


def create_secrets(folder: Path) -> list[str]:
    """Create the files that are missing; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(FOLDER_MODE)
    return _Files(folder).create()


@dataclass(frozen=True, slots=True)
class _Files:
    folder: Path

    def create(self) -> list[str]:
        before = {path.name for path in self.folder.iterdir()}
        for name in _PASSWORDS:
            self._keep(name, secrets.token_urlsafe(24))
        for name, create in _KEYS.items():
            create(self.folder / name)
            (self.folder / name).chmod(FILE_MODE)
        self._keep("vapid_public_key", load_vapid_key(self.folder / "vapid_key").public)
        self._keep_redis()
        self._keep_rabbitmq()
        self._keep_postgres()
        self._keep("smtp_url", "smtp://mailbox:1025")
        return sorted({path.name for path in self.folder.iterdir()} - before)

    def _keep(self, name: str, text: str) -> str:
        """The content of a file, which gets this text if it does not exist. Never half a file: made aside, linked."""
        path = self.folder / name
        if not path.exists():
            staging = self.folder / f".{name}.{os.getpid()}"
            staging.touch(mode=0o600)
            staging.write_text(text + "\n", encoding="utf-8")
            staging.chmod(FILE_MODE)
            staging.rename(path)
        return path.read_text(encoding="utf-8").strip()

    def _password(self, name: str, text: str, before: str) -> str:
        """The password behind the word `before` in a server's file."""
        lines = self._keep(name, text).splitlines()
        return next(line.removeprefix(before).strip() for line in lines if line.startswith(before))

    def _keep_redis(self) -> None:
        orders = self._password("redis_conf", f"requirepass {secrets.token_urlsafe(24)}", "requirepass")
        self._keep("redis_replica_conf", f"requirepass {orders}\nmasterauth {orders}\nreplicaof redis 6379")
        cache = self._password("cache_conf", f"requirepass {secrets.token_urlsafe(24)}", "requirepass")
        self._keep("redis_url", f"redis://:{orders}@redis:6379/0")
        self._keep("cache_url", f"redis://:{cache}@cache:6379/0")

    def _keep_rabbitmq(self) -> None:
        login = f"default_user = {USER}\ndefault_pass = {secrets.token_urlsafe(24)}\ndefault_vhost = {VHOST}"
        password = self._password("rabbitmq_login", login, "default_pass =")
        self._keep("queue_url", f"amqp://{USER}:{password}@rabbitmq:5672/{VHOST}")

    def _keep_postgres(self) -> None:
        password = (self.folder / "postgres_password").read_text(encoding="utf-8").strip()
        self._keep("pooler_users", f'"flashsale" "{password}"')

        def dsn(host: str, port: int, database: str) -> str:
            return f"postgresql://flashsale:{password}@{host}:{port}/{database}"

        shards = range(SHARDS)
        for name, database in (("catalogue", "catalogue"), ("analytics", "analytics")):
            self._keep(f"{name}_dsn", dsn("catalogue-pooler", 6432, database))
            self._keep(f"{name}_direct_dsn", dsn("catalogue", 5432, database))
        self._keep("catalogue_replica_dsn", dsn("catalogue-replica", 5432, "catalogue"))
        self._keep("shard_dsns", ",".join(dsn(f"shard-{n}-pooler", 6432, f"shard_{n}") for n in shards))
        self._keep("shard_direct_dsns", ",".join(dsn(f"shard-{n}", 5432, f"shard_{n}") for n in shards))
        self._keep("shard_replica_dsns", ",".join(dsn(f"shard-{n}-replica", 5432, f"shard_{n}") for n in shards))
