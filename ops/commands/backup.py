"""`backup`: take a backup to one consistent point, check it, restore it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import psycopg
import typer
from redis.exceptions import RedisError

from ops.audit import recorded
from ops.backup.chain import find
from ops.backup.create import Creation
from ops.backup.errors import BackupError
from ops.backup.manifest import Manifest
from ops.backup.postgres_tools import Tools
from ops.backup.restore import STACK_PASSWORD, STACK_SECRETS
from ops.backup.restore import restore as lay_out
from ops.backup.verify import problems
from ops.commands.options import AsJson, StateDir, print_json
from ops.stack_file import StackFolder
from ops.target import resolve
from runtime.audit import Action, object_name
from runtime.queue import QueueUnavailable

app = typer.Typer(no_args_is_help=True, help="Backups: create, verify, restore.")

Root = Annotated[Path, typer.Argument(help="The folder of all backups.", file_okay=False)]
Id = Annotated[str, typer.Option("--id", help="The backup's id.")]
PostgresBin = Annotated[
    Path | None,
    typer.Option("--postgres-bin", help="Folder of PostgreSQL's programs.", show_default="the wheel's, or in the PATH"),
]


def _say(text: str) -> None:
    """Progress, on a terminal only."""
    if sys.stderr.isatty():
        print(f"{text} ...", file=sys.stderr)


@app.command()
def create(
    root: Root,
    full: Annotated[bool, typer.Option("--full", help="Complete by itself, even if it could be a difference.")] = False,
    postgres_bin: PostgresBin = None,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """Back up the reservation Redis and all databases to one point, while orders are accepted.

    With an earlier backup in the folder only changed blocks are copied, where the servers support it. Workers stand
    still for some seconds. The backup of a stack of this machine holds its keys: keep the folder secret.
    """
    target = resolve(state_dir, needs=["redis_url", "queue_url", "catalogue_dsn", "shard_dsns"])
    settings = target.settings
    run = Creation(
        settings, root.resolve(), tools=Tools.find(postgres_bin), say=_say, full=full,
        keys=_stack_keys(state_dir) if target.is_stack else {},
    )  # fmt: skip
    with recorded(settings.catalogue_dsn, Action.BACKUP_CREATE, object_name("backup", run.id)) as after:
        try:
            folder = asyncio.run(run.run())
        except (RedisError, psycopg.Error, QueueUnavailable, OSError) as error:
            raise BackupError(f"no backup was taken: {' '.join(str(error).split()) or type(error).__name__}") from error
        parent = Manifest.read(folder).parent
        after |= {"parent": parent}
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if as_json:
        print_json({"id": run.id, "folder": str(folder), "parent": parent, "bytes": size, "frozen_s": run.frozen_s})
    else:
        kind = "complete" if parent is None else f"difference from {parent}"
        print(f"{run.id}: {kind}, {size / 1e6:,.0f} MB; workers stood still for {run.frozen_s:.1f} s\n{folder}")


@app.command()
def verify(root: Root, backup_id: Id = "latest", postgres_bin: PostgresBin = None, as_json: AsJson = False) -> None:
    """Check that a backup, and those that it rests on, are complete and unchanged.

    Exit status 1 if one is not.
    """
    folder = find(root.resolve(), backup_id)
    found = problems(root.resolve(), folder, tools=Tools.find(postgres_bin))
    if as_json:
        print_json({"id": folder.name, "is_good": not found, "problems": found})
    else:
        print("\n".join(found) if found else f"{folder.name}: complete and unchanged")
    if found:
        raise typer.Exit(1)


@app.command()
def restore(
    root: Root,
    into: Annotated[Path, typer.Option("--into", help="A new folder: of a stack, or for the servers' data.")],
    backup_id: Id = "latest",
    postgres_bin: PostgresBin = None,
    as_json: AsJson = False,
) -> None:
    """Lay a backup out as the data of new servers, in a new folder.

    The backup of a stack becomes a stack: start it with `flashsale up --state-dir FOLDER`.
    """
    folder = find(root.resolve(), backup_id)
    done = lay_out(root.resolve(), folder, into.resolve(), tools=Tools.find(postgres_bin), say=_say)
    if as_json:
        print_json(done)
        return
    print(f"{done['backup']} of {done['created_at']} is restored into {done['into']}")
    if done["is_stack"]:
        print(f"start it with `flashsale up --state-dir {done['into']}`, then run `flashsale reconcile`")


def _stack_keys(state_dir: Path | None) -> dict[str, Path]:
    """The files of a stack without which its data is of no use."""
    stack = StackFolder.at(state_dir)
    found = {f"keys/{path.name}": path for path in (stack.path / "keys").iterdir() if path.is_file()}
    found[STACK_SECRETS] = stack.path / "secrets.json"
    password = stack.path / "data" / "postgres" / "password"
    if password.exists():  # a full stack has many servers, each with its own
        found[STACK_PASSWORD] = password
    else:
        found |= {f"{path.parent.name}-password": path for path in stack.path.glob("data/*/password")}
    return found
