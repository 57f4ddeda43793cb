"""`rebuild`: restore a sale that Redis lost."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from ops.commands.options import AsJson, StateDir
from ops.processes import run_module
from ops.target import resolve


def rebuild(
    sale: Annotated[UUID, typer.Option(help="The sale's id.")],
    force: Annotated[
        bool, typer.Option("--force", help="Rebuild a healthy sale, too. It refuses orders meanwhile.")
    ] = False,
    wait_s: Annotated[
        float, typer.Option(min=1, max=3600, help="Seconds to wait for relays, for writers and for retries, each.")
    ] = 60.0,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """Restore a lost sale from PostgreSQL and reopen it.

    Exit status 1 if the sale is not open afterwards.
    """
    target = resolve(state_dir, needs=["redis_url", "queue_url", "catalogue_dsn", "shard_dsns"])
    arguments = ["--sale", str(sale), "--wait-s", str(wait_s)]
    if force:
        arguments.append("--force")
    if as_json:
        arguments.append("--json")
    raise typer.Exit(run_module("workers.recovery.rebuild", arguments, target))
