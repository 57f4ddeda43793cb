"""`shards`: where buckets are, prepare a new shard, move buckets between shards."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections import Counter
from typing import Annotated, Any, Final

import psycopg
import typer
from pydantic import SecretStr
from redis.exceptions import RedisError
from rich.console import Console

from domain.topology import BUCKETS
from migrations import runner
from ops.commands.options import AsJson, StateDir, print_json
from ops.resharding.catalogue import CatalogueSide
from ops.resharding.opening import opened_connection, opened_mover, opened_redis
from ops.resharding.procedure import Progress, unprepared
from ops.resharding.shard import MoveError, ShardSide
from ops.target import Target, resolve
from runtime.buckets import following
from runtime.process.errors import OperatorError
from runtime.process.settings import PREFIX, Settings

NEEDS: Final = ["redis_url", "catalogue_dsn", "shard_dsns"]
_RANGE: Final = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")

app = typer.Typer(no_args_is_help=True, help="Shards: show where buckets are, add a shard, move buckets.")
Buckets = Annotated[str, typer.Option(help="Buckets to move, 0 to 1023: 0-63, or 5, or 0-15,32-47.")]


@app.callback()
def _group() -> None:
    """Shards: show where buckets are, add a shard, move buckets."""


@app.command()
def status(as_json: AsJson = False, state_dir: StateDir = None) -> None:
    """Show how many buckets each shard owns, the group on its way, and the maps that processes have."""
    document = asyncio.run(_through_faults(_status(resolve(state_dir, needs=NEEDS).settings)))
    if as_json:
        print_json(document)
        return
    console = Console()
    console.print(f"map version {document['version']}")
    for shard, buckets in document["buckets"].items():
        console.print(f"shard {shard}: {buckets} buckets")
    if (moving := document["moving"]) is not None:
        console.print(
            f"on its way: {moving['buckets']} buckets from shard {moving['source']} to shard {moving['target']}, step "
            f"{moving['step']}; if no `flashsale shards move` runs, run it again"
        )
    for each in document["processes"]:
        console.print(f"{each['process']}: map {each['version']}, {each['shards']} shards, {each['age_s']:.0f} s ago")


@app.command()
def add(
    dsn: Annotated[str, typer.Argument(help="postgresql:// address of an empty database.", show_default=False)],
    state_dir: StateDir = None,
) -> None:
    """Prepare an empty database as the next shard. It owns no bucket until you move some there."""
    settings = resolve(state_dir, needs=NEEDS).settings
    number = len(settings.shard_dsns)
    if dsn in [known.get_secret_value() for known in settings.shard_dsns]:
        raise OperatorError(f"this database is a shard already; {PREFIX}SHARD_DSNS names it")
    runner.migrate_shard(dsn, number)
    asyncio.run(_through_faults(_add(SecretStr(dsn), number, settings)))
    first = settings.first_shards or settings.shards
    print(
        f"shard {number} is prepared and owns no bucket. Set in every process, and restart one after the other:\n"
        f"  {PREFIX}SHARDS={number + 1}\n"
        f"  {PREFIX}FIRST_SHARDS={first}\n"
        f"  {PREFIX}SHARD_DSNS=<the addresses of before>,<this address>\n"
        f"Then run: flashsale shards move --buckets FIRST-LAST --to {number}"
    )


@app.command()
def move(
    buckets: Buckets,
    to: Annotated[int, typer.Option(min=0, max=63, help="Number of the shard that gets them.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would move, and change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each step.")] = False,
    end_at: Annotated[str | None, typer.Option(hidden=True, help="For drills: kill this process at a step.")] = None,
    state_dir: StateDir = None,
) -> None:
    """Move buckets to another shard while orders come in. Run it again after an interruption: it goes on.

    Exit status 1 if not all buckets were moved.
    """
    wanted = parse_buckets(buckets)
    target = resolve(state_dir, needs=NEEDS)
    if to >= len(target.settings.shard_dsns):
        raise OperatorError(f"there is no shard {to}: {PREFIX}SHARD_DSNS names {len(target.settings.shard_dsns)}")
    if dry_run:
        document = asyncio.run(_through_faults(_plan(target.settings, wanted, to)))
        if as_json:
            print_json(document)
        else:
            print(f"{document['buckets']} buckets would move to shard {to}, with {document['orders']} orders")
        return
    moved = asyncio.run(_through_faults(_move(target, wanted, to, as_json=as_json, end_at=end_at)))
    if not as_json:
        print(f"{moved} buckets moved to shard {to}")


def parse_buckets(text: str) -> list[int]:
    """`0-15,32` as sorted numbers. Raises OperatorError."""
    found: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise OperatorError(f"--buckets {text}: write numbers and ranges from 0 to {BUCKETS - 1}, such as 0-63,128")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < BUCKETS:
            raise OperatorError(f"--buckets {part}: buckets go from 0 to {BUCKETS - 1}, the lower one first")
        found.update(range(first, last + 1))
    return sorted(found)


async def _through_faults(work: Any) -> Any:
    try:
        return await work
    except (psycopg.Error, RedisError, OSError, TimeoutError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OperatorError(f"{reason}; nothing is lost: run the command again when all servers answer") from error


async def _status(settings: Settings) -> dict[str, Any]:
    async with opened_redis(settings) as redis, opened_connection(settings.catalogue_session_dsn) as connection:
        catalogue = CatalogueSide(connection)
        stored, group = await catalogue.map(), await catalogue.group()
        known = await following.known(redis)
    counts = Counter(stored.owners(settings.topology).values())
    return {
        "version": stored.version,
        "buckets": {str(shard): counts[shard] for shard in range(len(settings.shard_dsns))},
        "moving": group and {
            "buckets": len(group.buckets), "source": group.source, "target": group.target, "step": group.step,
        },
        "processes": [
            {"process": k.process, "version": k.version, "shards": k.shards, "age_s": round(k.age_s, 1)} for k in known
        ],
    }  # fmt: skip


async def _add(dsn: SecretStr, number: int, settings: Settings) -> None:
    async with opened_connection(settings.catalogue_session_dsn) as connection:
        stored = await CatalogueSide(connection).map()
    owners = stored.owners(settings.topology)
    async with opened_connection(dsn) as connection:
        shard = ShardSide(number, connection)
        if await shard.holds_anything():
            raise OperatorError("the database has accounts or orders: a new shard must be empty")
        await shard.own_nothing_else(owners)


async def _plan(settings: Settings, wanted: list[int], to: int) -> dict[str, Any]:
    async with opened_connection(settings.catalogue_session_dsn) as connection:
        owners = (await CatalogueSide(connection).map()).owners(settings.topology)
    moving = [bucket for bucket in wanted if owners[bucket] != to]
    orders = 0
    for number, dsn in enumerate(settings.shard_session_dsns):
        async with opened_connection(dsn) as connection:
            listed = [bucket for bucket in moving if owners[bucket] == number]
            orders += sum((await ShardSide(number, connection).count_orders(listed)).values())
    sources = Counter(owners[bucket] for bucket in moving)
    return {"buckets": len(moving), "orders": orders, "from": {str(s): n for s, n in sorted(sources.items())}, "to": to}


async def _move(target: Target, wanted: list[int], to: int, *, as_json: bool, end_at: str | None) -> int:
    settings = target.settings
    async with opened_redis(settings) as redis:
        known = await following.known(redis)
    if missing := unprepared(known, to):
        raise MoveError(
            f"these processes do not know shard {to} yet: {', '.join(missing)}; set {PREFIX}SHARDS, "
            f"{PREFIX}FIRST_SHARDS and {PREFIX}SHARD_DSNS as `flashsale shards add` says, and restart them"
        )
    console = Console(stderr=True)
    with console.status("preparing") as shown:  # shows nothing unless stderr is a terminal

        def report(progress: Progress) -> None:
            first, last = progress.buckets[0], progress.buckets[-1]
            shown.update(f"{progress.done} of {progress.total} buckets, group {first} to {last}: {progress.step}")
            if as_json:
                _print_line(progress)
            if progress.step == end_at:
                os.kill(os.getpid(), signal.SIGKILL)

        async with opened_mover(settings, report) as mover:
            return await mover.move(wanted, to)


def _print_line(progress: Progress) -> None:
    """One step as a line of JSON."""
    document = {
        "step": progress.step, "buckets": [progress.buckets[0], progress.buckets[-1]], "count": len(progress.buckets),
        "from": progress.source, "to": progress.target, "done": progress.done, "total": progress.total,
    }  # fmt: skip
    if progress.frozen_ms is not None:
        document["frozen_ms"] = round(progress.frozen_ms, 1)
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()
