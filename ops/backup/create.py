"""Takes a backup. See the package for its order."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ops.backup import chain, manifest
from ops.backup.errors import BackupError
from ops.backup.freeze import frozen
from ops.backup.manifest import Manifest
from ops.backup.postgres_copy import PostgresCopy, servers_of
from ops.backup.postgres_tools import Tools
from ops.backup.redis_copy import RedisCopy, server_of
from ops.resharding.catalogue import LOCK_ID as MOVE_LOCK_ID
from runtime.postgres.connection import connect_command
from runtime.process.settings import Settings
from runtime.queue import open_queue
from runtime.redis.addresses import is_cluster
from runtime.redis.client import redis_client

LOCK_ID: Final = 0x666C6173_6862636B  # "flashbck"
SERVERS_AT_ONCE: Final = 4
POSTGRES: Final = "postgres"
REDIS: Final = "redis"
KEYS: Final = "keys"
PARTIAL: Final = ".partial"

Say = Callable[[str], None]


class Creation:
    """One backup of a deployment. `keys`: files with keys and secrets to keep with it, by their path in the backup."""

    def __init__(
        self, settings: Settings, root: Path, *, tools: Tools, say: Say, full: bool, keys: Mapping[str, Path]
    ) -> None:
        """`root`: the folder of all backups. `full`: complete by itself, even if there is an earlier one."""
        self._settings = settings
        self._root = root
        self._tools = tools
        self._say = say
        self._full = full
        self._keys = keys
        now = datetime.now(UTC)
        self._created_at = now.isoformat(timespec="seconds")
        self._random = secrets.token_hex(4)
        self.id = f"{now:%Y%m%dT%H%M%SZ}-{self._random}"
        self.frozen_s = 0.0

    async def run(self) -> Path:
        """Take the backup; its folder. Raises BackupError, redis.RedisError, psycopg.Error and the queue's errors.

        A run that fails leaves no backup: its folder is removed, or ends in `.partial` when this process was killed.
        """
        servers = _redis_servers(self._settings)
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = self._root / f"{self.id}{PARTIAL}"
        folder.mkdir(mode=0o700)
        try:
            with self._alone():
                document = await self._copy(folder, servers)
            document.write(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder.rename(self._root / self.id)

    async def _copy(self, folder: Path, servers: Sequence[tuple[str, str]]) -> Manifest:
        (folder / POSTGRES).mkdir(mode=0o700)
        (folder / REDIS).mkdir(mode=0o700)
        with ExitStack() as stack:
            copies = [
                stack.enter_context(
                    PostgresCopy(server, folder / POSTGRES / server.name, backup_id=self._random, tools=self._tools)
                )
                for server in servers_of(_databases(self._settings))
            ]
            parent = self._parent(copies)
            self._say("copying the databases" if parent is None else f"copying the changes since {parent.name}")
            each(lambda copy: copy.files(since=_part(parent, copy)), copies)
            reservations = {name: stack.enter_context(RedisCopy(url)) for name, url in servers}
            self._say("holding the workers still; orders are accepted")
            async with self._frozen():
                # In threads: the leases are renewed meanwhile.
                for copy in reservations.values():
                    await asyncio.to_thread(copy.begin)
                await asyncio.to_thread(each, PostgresCopy.mark, copies)
            self._say("fetching Redis and the databases' logs")
            for name, reservation in reservations.items():
                reservation.save(folder / REDIS / f"{name}.rdb")
            each(PostgresCopy.log, copies)
        self._copy_keys(folder)
        self._say("computing check sums")
        return Manifest(
            id=self.id,
            created_at=self._created_at,
            fingerprint=self._settings.topology.fingerprint,
            parent=None if parent is None else parent.name,
            redis={name: {"file": f"{REDIS}/{name}.rdb"} for name in reservations},
            postgres={copy.server.name: copy.facts for copy in copies},
            files=manifest.sums(folder),
        )

    @asynccontextmanager
    async def _frozen(self) -> Any:
        settings = self._settings
        async with AsyncExitStack() as stack:
            redis = redis_client(settings.redis_url)
            stack.push_async_callback(redis.aclose)
            queue = open_queue(settings.queue_url, settings.topology.queues, length_max=settings.queue_length_max)
            stack.push_async_callback(queue.close)
            began = time.monotonic()
            async with frozen(redis, queue, settings.topology, lease_ms=settings.lease_ms) as freeze:
                yield
                freeze.require_held()
            self.frozen_s = time.monotonic() - began

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One backup at a time. The lock ends with its connection, also when this process is killed."""
        with connect_command(self._settings.catalogue_session_dsn.get_secret_value()) as connection:
            row = connection.execute("SELECT pg_try_advisory_lock(%s)", (LOCK_ID,)).fetchone()
            if row is None or not row[0]:
                raise BackupError("another backup of this deployment is being taken")
            # Rows on their way between two shards would be in both copies, or in none.
            moving = connection.execute(
                "SELECT NOT pg_try_advisory_lock(%s) OR EXISTS (SELECT FROM bucket_group)", (MOVE_LOCK_ID,)
            ).fetchone()
            if moving is None or moving[0]:
                raise BackupError(
                    "buckets move between shards: wait for the end of `flashsale shards move`, or run it again if it was "
                    "interrupted"
                )
            yield

    def _parent(self, copies: Sequence[PostgresCopy]) -> Path | None:
        """The newest backup, if this one can be the difference from it."""
        if self._full:
            return None
        try:
            newest = chain.find(self._root, "latest")
            earlier = chain.chain_of(self._root, newest)
        except BackupError:
            return None
        known = earlier[-1][1].postgres
        fits = all(copy.fits(known.get(copy.server.name, {})) for copy in copies)
        return newest if fits and len(earlier) < chain.LENGTH_MAX else None

    def _copy_keys(self, folder: Path) -> None:
        for name, path in self._keys.items():
            target = folder / KEYS / name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            target.chmod(0o600)


def each(work: Callable[[PostgresCopy], Any], copies: Sequence[PostgresCopy]) -> None:
    """Do this for all servers, some at once; the first error is raised after all have ended."""
    with ThreadPoolExecutor(max_workers=SERVERS_AT_ONCE) as pool:
        for done in [pool.submit(work, copy) for copy in copies]:
            done.result()


def _part(parent: Path | None, copy: PostgresCopy) -> Path | None:
    return None if parent is None else parent / POSTGRES / copy.server.name


def _databases(settings: Settings) -> list[tuple[str, str]]:
    named = [("catalogue", settings.catalogue_session_dsn)]
    named += [(f"shard_{shard}", dsn) for shard, dsn in enumerate(settings.shard_session_dsns)]
    if settings.analytics_dsn is not None:
        named.append(("analytics", settings.analytics_dsn))
    return [(name, dsn.get_secret_value()) for name, dsn in named]


def _redis_servers(settings: Settings) -> list[tuple[str, str]]:
    """Servers with data that nothing else holds; a queue or an event log may have one of its own."""
    named = [("reservations", settings.redis_url), ("queue", settings.queue_url), ("events", settings.event_log_url)]
    found: dict[tuple[str, int], tuple[str, str]] = {}
    for name, url in named:
        if is_cluster(url):
            raise BackupError("a Redis Cluster cannot be backed up yet: its nodes have no common point in time")
        if url.startswith(("redis://", "rediss://")):
            found.setdefault(server_of(url), (name, url))
    return list(found.values())
