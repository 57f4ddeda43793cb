"""Options that several commands share, and the way they print JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        help="Work on the stack in this folder, whatever FLASHSALE_* settings say.",
        show_default=".flashsale in the project",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(document: Any) -> None:
    """Print a document for a program to read."""
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")
