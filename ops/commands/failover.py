"""`failover`: promote a replica, after a comparison that shows whether it has everything."""

from __future__ import annotations

from typing import Annotated

import typer

from ops.commands.options import AsJson, StateDir
from ops.processes import run_module
from ops.target import resolve


def failover(
    redis: Annotated[
        list[str],
        typer.Option("--redis", help="redis:// address of a replica of the reservation Redis. Name all replicas."),
    ],
    accept_loss: Annotated[
        bool,
        typer.Option("--accept-loss", help="Promote a replica that is behind, too, and close the sales of its lanes."),
    ] = False,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """Promote the replica that has most, if it has all entries that PostgreSQL has recorded.

    Exit status 1 if no replica was promoted.
    """
    target = resolve(state_dir, needs=["redis_url", "catalogue_dsn", "shard_dsns"])
    arguments = [word for url in redis for word in ("--replica", url)]
    if accept_loss:
        arguments.append("--accept-loss")
    if as_json:
        arguments.append("--json")
    raise typer.Exit(run_module("workers.recovery.failover", arguments, target))
