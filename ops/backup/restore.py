"""Lays a backup out as the data folders of new servers. Starts nothing: PostgreSQL recovers at its first start.

In the folder of a stack, `flashsale up` uses them. Elsewhere they are `redis/<name>` and `postgres/<server>`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ops.backup.chain import chain_of
from ops.backup.create import KEYS, POSTGRES
from ops.backup.errors import BackupError
from ops.backup.manifest import Manifest
from ops.backup.postgres_copy import FILES, WAL
from ops.backup.postgres_tools import Tools
from ops.backup.verify import problems

Say = Callable[[str], None]
STACK_SECRETS: Final = "secrets.json"  # among the keys of a stack
STACK_PASSWORD: Final = "postgres-password"  # of the one server of an embedded stack
_POSTGRES_UID: Final = 65534  # as root PostgreSQL runs as `nobody`
_WAL_FOLDER: Final = "flashsale_wal"
_CONFIGURATION: Final = "postgresql.auto.conf"
_AOF: Final = "appendonly.aof"


def restore(root: Path, folder: Path, into: Path, *, tools: Tools, say: Say) -> dict[str, Any]:
    """Check the backup and lay it out; a document about the result. Raises BackupError, and leaves `into` unchanged.

    `into` must be empty or missing: nothing is ever restored over data.
    """
    if into.exists() and any(into.iterdir()):
        raise BackupError(
            f"{into} is not empty: a backup is restored into a new folder only, so that no running sale is overwritten"
        )
    say("checking the backup")
    if found := problems(root, folder, tools=tools):
        raise BackupError(f"the backup is damaged: {'; '.join(found[:5])}")
    chain = chain_of(root, folder)
    document = chain[-1][1]
    is_stack = (folder / KEYS / STACK_PASSWORD).exists()  # with one PostgreSQL and one Redis
    staging = into.with_name(f".{into.name}.restoring")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700, parents=True)
    try:
        for name in document.postgres:
            say(f"restoring the databases of {name}")
            place = staging / "data/postgres/data" if is_stack else staging / POSTGRES / name
            lay_postgres(chain, name, place, tools)
        for name, facts in document.redis.items():
            place = staging / "data/redis" if is_stack else staging / "redis" / name
            lay_redis(folder / facts["file"], place)
        if (folder / KEYS).exists():
            _lay_keys(folder / KEYS, staging if is_stack else staging / KEYS)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if into.exists():
        into.rmdir()
    staging.rename(into)
    return {"backup": document.id, "created_at": document.created_at, "into": str(into), "is_stack": is_stack}


def lay_postgres(chain: list[tuple[Path, Manifest]], server: str, place: Path, tools: Tools) -> None:
    """The server's files, set to recover up to the point with their first start, and to clean up after it."""
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    parts = [folder / POSTGRES / server / FILES for folder, _ in chain]
    if len(parts) == 1:
        shutil.copytree(parts[0], place, symlinks=True)
    else:
        tools.run("pg_combinebackup", [*map(str, parts), "-o", str(place)])
    shutil.copytree(chain[-1][0] / POSTGRES / server / WAL, place / _WAL_FOLDER)
    before = place / f"{_CONFIGURATION}.flashsale"
    shutil.copyfile(place / _CONFIGURATION, before)
    point = chain[-1][1].postgres[server]["point"]["name"]
    with (place / _CONFIGURATION).open("a", encoding="utf-8") as file:
        file.write(
            f'\nrestore_command = \'cp "{_WAL_FOLDER}/%f" "%p"\'\n'
            f"recovery_target_name = '{point}'\n"
            "recovery_target_action = 'promote'\n"
            "recovery_target_timeline = 'current'\n"
            # No client shall take the way to the point for the point.
            "hot_standby = off\n"
            f"recovery_end_command = 'mv {before.name} {_CONFIGURATION}; rm -rf {_WAL_FOLDER}'\n"
        )
    (place / "recovery.signal").touch()
    place.chmod(0o700)
    if os.geteuid() == 0:
        for path in (place, *place.rglob("*")):
            os.chown(path, _POSTGRES_UID, -1, follow_symlinks=False)


def lay_redis(copy: Path, place: Path) -> None:
    """An append-only file whose base is the copy."""
    folder = place / "appendonlydir"
    folder.mkdir(mode=0o700, parents=True)
    shutil.copyfile(copy, folder / f"{_AOF}.1.base.rdb")
    (folder / f"{_AOF}.1.incr.aof").touch()
    (folder / f"{_AOF}.manifest").write_text(
        f"file {_AOF}.1.base.rdb seq 1 type b\nfile {_AOF}.1.incr.aof seq 1 type i\n", encoding="ascii"
    )


def _lay_keys(keys: Path, stack: Path) -> None:
    for path in keys.rglob("*"):
        if path.is_dir():
            continue
        name = path.relative_to(keys)
        target = stack / ("data/postgres/password" if str(name) == STACK_PASSWORD else name)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(0o600)
