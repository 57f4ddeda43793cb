"""The full stack: the data tier as in production. The catalogue and each shard are a pair of PostgreSQL servers, with a
PgBouncer before the primary; Redis for reservations has a replica; the cache is a Redis of its own.

    processes ── pgbouncer-0 ── postgres-shard-0 ══ synchronous ══> postgres-shard-0-replica ── reads of the backoffice

The analytics database is on the catalogue's primary, at its direct address: its figures can be counted again from the
event log, so one more pair would protect nothing, and a rebuild of the figures holds a lock of a session.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from devstack import pgbouncer
from devstack.pgbouncer import PgBouncer
from devstack.plan import Plan
from devstack.postgres_pair import PostgresPair, install_statistics, pair_at
from devstack.program import Program
from devstack.servers import RedisServer
from devstack.state import StateFolder
from migrations.runner import migrate
from ops.stack_file import StackError

STACK_VARIABLE: Final = "DEVSTACK_STACK"  # a StackKind, in the environment of a supervisor
CACHE_MEMORY_MAX: Final = "256mb"


class StackKind(StrEnum):
    """Kinds of a stack, by its servers."""

    EMBEDDED = "embedded"
    FULL = "full"


class FullPlan(Plan):
    """A full stack in a folder. `pairs` and `poolers`: `catalogue`, then the shards as `shard-0` and so on."""

    pairs: dict[str, PostgresPair]
    poolers: dict[str, PgBouncer]
    redis_replica: RedisServer
    redis_cache: RedisServer

    def _choose_databases(self) -> None:
        if pgbouncer.program() is None:
            raise StackError(pgbouncer.HOW_TO_INSTALL)
        names = ["catalogue", *(f"shard-{shard}" for shard in range(self.settings.shards))]
        self.pairs = {name: pair_at(self.folder.data, name, place=self.folder.place) for name in names}
        self.poolers = {}
        password = self.folder.secret("redis_password")
        data = self.folder.data
        self.redis_replica = RedisServer(data / "redis-replica", password=password, follows=self.redis.port)
        # Without eviction: positions of recent writes must not disappear one by one (ADR 16).
        self.redis_cache = RedisServer(
            data / "redis-cache", password=password, durable=False, maxmemory=CACHE_MEMORY_MAX
        )

    def _initialise_databases(self) -> None:
        for server in (self.redis_replica, self.redis_cache):
            server.initialise()
        for name, pair in self.pairs.items():
            pair.initialise()
            pair.standby.folder.mkdir(parents=True, exist_ok=True)
            pooler = self.poolers[name] = PgBouncer(
                self.folder.data / pooler_name(name),
                pair.primary.port,
                pair.primary.password,
                outside=self.folder.place(pooler_name(name)),
            )
            pooler.initialise()

    def server_groups(self) -> list[list[Program]]:
        """Primaries and all other servers; then standbys, which copy a running primary."""
        first = [
            self._redis("redis", self.redis),
            self._redis("redis-cache", self.redis_cache),
            *(self._postgres(pair.primary.folder.name, pair.primary) for pair in self.pairs.values()),
            *self._other_servers(),
        ]
        second = [
            self._redis("redis-replica", self.redis_replica),
            *(self._standby(pair) for pair in self.pairs.values()),
            *(self._pooler(pooler_name(name), pooler) for name, pooler in self.poolers.items()),
        ]
        return [first, second]

    def _standby(self, pair: PostgresPair) -> Program:
        program = self._postgres(pair.standby.folder.name, pair.standby)
        return replace(program, prepare=pair.prepare_standby, answers=pair.in_step)

    def _pooler(self, name: str, pooler: PgBouncer) -> Program:
        return Program(
            name, pooler.argv, {**pooler.env, **self._member()}, self.folder.log(name),
            cwd=Path("/"), user=pooler.user, answers=pooler.answers,
        )  # fmt: skip

    def prepare_databases(self) -> None:
        """Create the databases, and bring them to the newest schema, at the primaries' own addresses."""
        catalogue, *shards = (pair.primary for pair in self.pairs.values())
        for node in (catalogue, *shards):
            install_statistics(node)
        migrate(
            catalogue.create_database("catalogue"),
            [node.create_database(name) for node, name in zip(shards, self.database_names[1:-1], strict=True)],
            analytics_dsn=catalogue.create_database("analytics"),
        )

    def addresses(self) -> dict[str, Any]:
        """The fields of `Stack` that name the cache, the databases, the replicas and the poolers."""
        pairs = [*zip(self.pairs.values(), self.poolers.values(), self.database_names[:-1], strict=True)]
        pooled = [pooler.dsn(name) for _, pooler, name in pairs]
        direct = [pair.primary.dsn(name) for pair, _, name in pairs]
        replicas = [pair.standby.dsn(name) for pair, _, name in pairs]
        return {
            "cache_url": self.redis_cache.url,
            "redis_replica_url": self.redis_replica.url,
            "catalogue_dsn": pooled[0],
            "shard_dsns": pooled[1:],
            "catalogue_direct_dsn": direct[0],
            "shard_direct_dsns": direct[1:],
            "catalogue_replica_dsn": replicas[0],
            "shard_replica_dsns": replicas[1:],
            "analytics_dsn": next(iter(self.pairs.values())).primary.dsn("analytics"),
            "postgres_servers": {
                node.folder.name: node.dsn() for pair in self.pairs.values() for node in (pair.first, pair.second)
            },
            "poolers": {pooler_name(name): pooler.dsn(pgbouncer.ADMIN) for name, pooler in self.poolers.items()},
        }


def pooler_name(pair: str) -> str:
    """`pgbouncer-catalogue`, `pgbouncer-0`."""
    return f"pgbouncer-{pair.removeprefix('shard-')}"


def plan_of(folder: StateFolder, edge_port: int, backoffice_port: int, environ: Mapping[str, str]) -> Plan:
    """The plan of the kind of stack that the environment names.

    StackError when the folder has data of the other kind: both would use the same Redis with different databases.
    """
    kind = StackKind(environ.get(STACK_VARIABLE, StackKind.EMBEDDED))
    theirs, other = ("postgres", "embedded") if kind is StackKind.FULL else ("postgres-catalogue", "full")
    if (folder.data / theirs).exists():
        raise StackError(
            f"{folder.path} has the data of a stack of the kind {other}: start it with `--stack {other}`, "
            "choose another folder with --state-dir, or remove it with `flashsale down --destroy`"
        )
    return (FullPlan if kind is StackKind.FULL else Plan)(folder, edge_port, backoffice_port, environ)
