"""`rebuild`: gives Redis a sale again that it lost."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated
from uuid import UUID

import typer

from devstack.state import PROJECT, overrule
from ops.commands.options import DEFAULT_STATE_DIR, AsJson, StateDir, folder_of


def rebuild(
    sale: Annotated[UUID, typer.Option(help="The sale's id.")],
    force: Annotated[bool, typer.Option("--force", help="Also a healthy sale: it is closed for a while.")] = False,
    wait_s: Annotated[
        float, typer.Option(min=1, max=3600, help="Wait so long for relays, writers and retries each.")
    ] = 60.0,
    as_json: AsJson = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Rebuild a sale that Redis lost from what is stored, and open it again. Exit status 1 if it is not open."""
    folder = folder_of(state_dir)
    argv = [sys.executable, "-m", "workers.recovery.rebuild", "--sale", str(sale), "--wait-s", str(wait_s)]
    if force:
        argv.append("--force")
    if as_json:
        argv.append("--json")
    env = overrule(os.environ, folder.settings_env(folder.require_stack()))
    raise typer.Exit(subprocess.run(argv, cwd=PROJECT, env=env, check=False).returncode)
