"""`analytics`: count the figures of sales again."""

from __future__ import annotations

from typing import Annotated

import typer

from ops.audit import recorded
from ops.commands.options import AsJson, StateDir
from ops.processes import run_module
from ops.target import resolve
from runtime.audit import Action, object_name

app = typer.Typer(no_args_is_help=True, help="Figures of sales: rebuild.")


@app.callback()
def group() -> None:
    """Figures of sales: rebuild."""


@app.command()
def rebuild(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the effect, change nothing.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Switch even if the event log lacks events that are counted.")
    ] = False,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """Count the figures of sales again from the event log.

    The present figures are served meanwhile. Days that the log does not hold completely keep their figures. The audit
    log keeps an entry. Exit status 1 if the figures are as before.
    """
    target = resolve(state_dir, needs=["event_log_url", "analytics_dsn", "catalogue_dsn"])
    flags = {"--dry-run": dry_run, "--force": force, "--json": as_json}
    arguments = [flag for flag, is_set in flags.items() if is_set]
    if dry_run:
        raise typer.Exit(run_module("workers.analytics.rebuild", arguments, target))
    with recorded(target.settings.catalogue_dsn, Action.FIGURES_REBUILD, object_name("figures", "all")) as after:
        after |= {"force": force}
        if status := run_module("workers.analytics.rebuild", arguments, target):
            raise typer.Exit(status)
