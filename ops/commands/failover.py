"""`failover`: promote a replica, after a comparison that shows whether it has everything."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ops.commands.options import AsJson, StateDir
from ops.processes import run_module, run_program
from ops.stack_file import StackFolder
from ops.target import resolve


def failover(
    redis: Annotated[
        list[str] | None,
        typer.Option("--redis", help="redis:// address of a replica of the reservation Redis. Name all replicas."),
    ] = None,
    shard: Annotated[
        int | None, typer.Option("--shard", min=0, help="Number of a shard of the full stack of this machine.")
    ] = None,
    catalogue: Annotated[
        bool, typer.Option("--catalogue", help="The catalogue of the full stack of this machine.")
    ] = False,
    accept_loss: Annotated[
        bool,
        typer.Option("--accept-loss", help="Promote a replica that is behind, too, and close the sales of its lanes."),
    ] = False,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """Promote a replica: of the reservation Redis, of a shard, or of the catalogue.

    Redis: the replica that has most, if it has all entries that PostgreSQL has recorded. A database: its primary is
    ended and fenced, its standby takes over, the pooler follows, and the old primary becomes the standby. An
    interrupted run is finished by the next one. Exit status 1 if no replica was promoted.
    """
    if (redis is not None) + (shard is not None) + catalogue != 1:
        raise typer.BadParameter("name one of --redis, --shard, --catalogue")
    if redis is None:
        arguments = ["--catalogue"] if shard is None else ["--shard", str(shard)]
        arguments += ["--state-dir", str(StackFolder.at(state_dir).path), *(["--json"] if as_json else [])]
        raise typer.Exit(run_program("devstack.shard_failover", arguments, os.environ))
    target = resolve(state_dir, needs=["redis_url", "catalogue_dsn", "shard_dsns"])
    arguments = [word for url in redis for word in ("--replica", url)]
    if accept_loss:
        arguments.append("--accept-loss")
    if as_json:
        arguments.append("--json")
    raise typer.Exit(run_module("workers.recovery.failover", arguments, target))
