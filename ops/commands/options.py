"""What several commands have in common: options, and how they print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from devstack.state import StateFolder

StateDir = Annotated[
    Path,
    typer.Option("--state-dir", help="Folder of the stack.", show_default=".flashsale in the project"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]

DEFAULT_STATE_DIR = StateFolder.default().path


def folder_of(state_dir: Path) -> StateFolder:
    """The stack's folder by its absolute path: processes are recognised by it."""
    return StateFolder(state_dir.resolve())


def print_json(document: Any) -> None:
    """An answer for a program."""
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")
