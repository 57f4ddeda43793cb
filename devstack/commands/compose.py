"""`compose-secrets`: create the secrets of `docker-compose.yml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from devstack.compose_secrets import FOLDER, create_secrets
from ops.stack_file import PROJECT


def compose_secrets(
    folder: Annotated[Path, typer.Option(help="Folder of the files; docker-compose.yml reads the default.")] = PROJECT
    / FOLDER,
) -> None:
    """Create the secrets that docker-compose.yml mounts, a file each; files that exist stay as they are."""
    created = create_secrets(folder.resolve())
    done = f"created {', '.join(created)}" if created else "complete, nothing created"
    print(f"{folder.resolve()}: {done}")
