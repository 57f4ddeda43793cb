"""`python -m workers.recovery.failover --replica URL [--accept-loss] [--json]`: promote a replica of Redis.

Fences the primary of FLASHSALE_REDIS_URL if it lives, waits until the replica has its data, and compares the sequences
of all lanes with the records of PostgreSQL before it promotes. `--replica` may be repeated: the one with most is taken.
A replica that is behind is promoted only with `--accept-loss`; then the sales of its lanes are closed, and `flashsale
rebuild` raises their epoch. Does not change the address that the processes use. Exit status: 0 promoted; 1 not
promoted, the message says why; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from reservation.reading import read_sequences
from runtime.postgres.pool import postgres_pool
from runtime.process.errors import OperatorError
from runtime.process.service import settings_or_exit
from runtime.process.settings import Settings
from runtime.process.telemetry import configure_logging
from runtime.redis.addresses import is_cluster
from runtime.redis.client import redis_client
from workers.consuming import TRANSIENT
from workers.recovery.losses import LaneRecovery

NAME: Final = "failover"
PRIMARY_S_MAX: Final = 2.0  # for an answer of the primary; one that takes longer counts as gone
CATCH_UP_S_MAX: Final = 10.0
CATCH_UP_LOOK_S: Final = 0.02
FENCE: Final = 1_000_000  # replicas that a fenced primary needs for a write: it answers NOREPLICAS to all of them
_CALL_S_MAX: Final = 30.0


class FailoverRefused(OperatorError):
    """No replica was promoted."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """The new primary, its lanes with less than PostgreSQL has recorded (sequence, recorded), and closed sales."""

    host: str
    port: int
    behind: Mapping[int, tuple[int, int]]
    closed_sales: int
    primary_answered: bool

    def as_document(self) -> dict[str, Any]:
        """The document for `--json`."""
        return {
            "promoted": f"{self.host}:{self.port}",
            "primary_answered": self.primary_answered,
            "behind": [{"lane": lane, "seq": seq, "recorded": floor} for lane, (seq, floor) in self.behind.items()],
            "closed_sales": self.closed_sales,
        }


async def promote(settings: Settings, replicas: Sequence[str], *, accept_loss: bool) -> Promotion:
    """Promote the replica that has most. FailoverRefused, and the errors of the servers' clients."""
    if is_cluster(settings.redis_url):
        raise FailoverRefused("the nodes of a Redis Cluster promote their replicas by themselves")
    lanes = range(settings.lanes)
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(
            postgres_pool(settings.catalogue_dsn, size_max=2, call_s_max=_CALL_S_MAX)
        )
        shards = [
            await stack.enter_async_context(postgres_pool(dsn, size_max=2, call_s_max=_CALL_S_MAX))
            for dsn in settings.shard_dsns
        ]
        primary = await stack.enter_async_context(_client(settings.redis_url, timeout_s=PRIMARY_S_MAX))
        clients = [await stack.enter_async_context(_client(url, timeout_s=_CALL_S_MAX)) for url in replicas]
        offsets = [await _offset(client, url) for client, url in zip(clients, replicas, strict=True)]
        newest = offsets.index(max(offsets))
        chosen, url = clients[newest], replicas[newest]
        recovery = LaneRecovery(redis=chosen, catalogue=pool, shards=shards)
        async with _fenced(primary) as fence:
            if fence.is_alive:
                await _catch_up(primary, chosen)
            found, floors = await read_sequences(chosen, lanes), await recovery.floors(lanes)
            behind = {lane: (found[lane], floors[lane]) for lane in lanes if found[lane] < floors[lane]}
            if behind and not accept_loss:
                listed = ", ".join(f"lane {lane} has {seq} of {floor}" for lane, (seq, floor) in behind.items())
                raise FailoverRefused(
                    f"the replica is behind PostgreSQL ({listed}): name a replica that has more, or repeat with "
                    "--accept-loss, which closes the sales of these lanes until each is rebuilt"
                )
            await _run(chosen, "REPLICAOF", "NO", "ONE")
            fence.keep()
        closed = await recovery.close_lanes_gone_back(behind) if behind else {}
        parts = urlsplit(url)
        host, port = parts.hostname or "127.0.0.1", parts.port or 6379
        if fence.is_alive:
            await _follow(primary, host, port, fence.before)
        return Promotion(host, port, behind, sum(lane.sales for lane in closed.values()), fence.is_alive)


@dataclass(slots=True)
class _Fence:
    is_alive: bool
    is_kept: bool = False
    before: int = 0  # replicas that the primary needed for a write

    def keep(self) -> None:
        self.is_kept = True


@asynccontextmanager
async def _fenced(primary: Redis) -> AsyncIterator[_Fence]:
    """Let the primary take no write, if it answers. Ended without `keep`, it takes writes again."""
    try:
        before = int((await primary.config_get("min-replicas-to-write"))["min-replicas-to-write"] or 0)
        await primary.config_set("min-replicas-to-write", FENCE)
    except (RedisError, OSError, TimeoutError):
        yield _Fence(is_alive=False)
        return
    fence = _Fence(is_alive=True, before=before)
    try:
        yield fence
    finally:
        if not fence.is_kept:
            await primary.config_set("min-replicas-to-write", before)


async def _catch_up(primary: Redis, replica: Redis) -> None:
    wanted = int((await primary.info("replication"))["master_repl_offset"])
    deadline = time.monotonic() + CATCH_UP_S_MAX
    while int((await replica.info("replication"))["slave_repl_offset"]) < wanted:
        if time.monotonic() > deadline:
            raise FailoverRefused(
                f"the replica did not get the primary's data within {CATCH_UP_S_MAX:.0f} s: check its connection to "
                "the primary; the primary takes orders again"
            )
        await asyncio.sleep(CATCH_UP_LOOK_S)


async def _follow(primary: Redis, host: str, port: int, needed: int) -> None:
    """Make the old primary a replica, then end its fence. If that fails it stays fenced until its next start."""
    try:
        await _run(primary, "REPLICAOF", host, port)
        await primary.config_set("min-replicas-to-write", needed)
    except (RedisError, OSError, TimeoutError) as error:
        sys.stderr.write(f"{NAME}: the old primary does not follow the new one: {error}\n")


async def _offset(client: Redis, url: str) -> int:
    state = await client.info("replication")
    if state["role"] != "slave":
        raise FailoverRefused(f"{urlsplit(url).hostname}:{urlsplit(url).port} is not a replica: name a replica")
    return int(state["slave_repl_offset"])


@asynccontextmanager
async def _client(url: str, *, timeout_s: float) -> AsyncIterator[Redis]:
    client = redis_client(url, connections_max=2, timeout_s=timeout_s)
    try:
        yield client
    finally:
        await client.aclose()


def _run(client: Redis, *command: str | int) -> Awaitable[Any]:
    answer: Awaitable[Any] = client.execute_command(*command)  # type: ignore[no-untyped-call]
    return answer


def main() -> None:
    """Parse the command line, promote, report."""
    options = _parse(sys.argv[1:])
    settings = settings_or_exit(NAME, all_shards=True)
    configure_logging(NAME, settings.log_level)
    try:
        promotion = asyncio.run(promote(settings, options.replica, accept_loss=options.accept_loss))
    except OperatorError as error:
        _fail(str(error), options.json)
    except TRANSIENT as error:
        _fail(f"{type(error).__name__}: {error}", options.json)
    document = promotion.as_document()
    if options.json:
        sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    sys.stdout.write(f"{document['promoted']} is the primary now: point FLASHSALE_REDIS_URL of every process to it\n")
    for lane in document["behind"]:
        sys.stdout.write(f"  lane {lane['lane']} lost entries {lane['seq'] + 1} to {lane['recorded']}\n")
    if promotion.closed_sales:
        sys.stdout.write(f"  {promotion.closed_sales} sales are closed: run `flashsale rebuild --sale ID` for each\n")
    if not promotion.primary_answered:
        sys.stdout.write("  the old primary did not answer: do not start it again except as a replica\n")


def _fail(problem: str, as_json: bool) -> NoReturn:
    if as_json:
        sys.stdout.write(orjson.dumps({"error": problem}).decode() + "\n")
    sys.stderr.write(f"{NAME}: {problem}\n")
    raise SystemExit(1)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workers.recovery.failover", description="Promote a Redis replica.")
    parser.add_argument("--replica", action="append", required=True, help="redis:// address of a replica; repeatable")
    parser.add_argument("--accept-loss", action="store_true", help="promote a replica that is behind, too")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
