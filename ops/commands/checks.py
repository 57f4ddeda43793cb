"""`migrate`, `reconcile`: databases brought up to date, and invariants judged."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated
from uuid import UUID

import typer

from devstack.state import PROJECT, overrule
from migrations.runner import migrate as migrate_databases
from ops.commands.options import DEFAULT_STATE_DIR, AsJson, StateDir, folder_of, print_json
from runtime.process.settings import load_settings


def migrate(as_json: AsJson = False, state_dir: StateDir = DEFAULT_STATE_DIR) -> None:
    """Bring all databases to the newest schema: the stack's, or those of FLASHSALE_CATALOGUE_DSN and _SHARD_DSNS if set."""
    if "FLASHSALE_CATALOGUE_DSN" in os.environ or "FLASHSALE_CATALOGUE_DSN_FILE" in os.environ:
        settings = load_settings()
        catalogue = settings.catalogue_dsn.get_secret_value()
        shards = [dsn.get_secret_value() for dsn in settings.shard_dsns]
    else:
        stack = folder_of(state_dir).require_stack()
        catalogue, shards = stack.catalogue_dsn, stack.shard_dsns
    applied = migrate_databases(catalogue, shards)
    if as_json:
        print_json(applied)
        return
    for database, names in applied.items():
        print(f"{database}: {', '.join(names) if names else 'up to date'}")


def reconcile(
    sale: Annotated[UUID | None, typer.Option(help="Judge this sale only.")] = None,
    as_json: AsJson = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Judge invariants A (no oversell) and B (nothing lost) now. Exit status 1 if one is violated."""
    folder = folder_of(state_dir)
    argv = [sys.executable, "-m", "workers.reconciler", "--once"]
    if sale is not None:
        argv += ["--sale", str(sale)]
    if as_json:
        argv.append("--json")
    env = overrule(os.environ, folder.settings_env(folder.require_stack()))
    raise typer.Exit(subprocess.run(argv, cwd=PROJECT, env=env, check=False).returncode)
