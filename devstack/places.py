"""Folders of servers that refuse to run as root: they run as another user, which must be able to enter the folder."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Final

UNPRIVILEGED_UID: Final = 65534
_OWNER = "owner"  # file in such a folder: names the server folder that it belongs to
_SHARED_PLACE = Path("/var/tmp")  # noqa: S108 - only root writes there, into folders with a checked owner


def unprivileged_uid() -> int | None:
    """The uid to run such a server as; None when we are not root."""
    return UNPRIVILEGED_UID if os.geteuid() == 0 else None


def reachable_by_others(path: Path) -> bool:
    """Whether other users can enter the folder and all folders above it."""
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))


def place_of(folder: Path, *, outside: Path | None, user: int | None) -> Path | None:
    """The folder that only the unprivileged user enters; None when that user can reach `folder`.

    The place is `outside`, or, without one that the user can reach, a folder under /var/tmp. Its name is random, and
    stored in `folder`. The caller removes the place together with `folder`.
    """
    if user is None or reachable_by_others(folder):
        return None
    if outside is not None and reachable_by_others(outside.parent):
        place = outside
    else:
        note = folder / "place"
        if not note.exists():
            _remove_orphaned_places()
            note.write_text(str(_SHARED_PLACE / f"flashsale-{secrets.token_hex(8)}"), encoding="utf-8")
        place = Path(note.read_text(encoding="utf-8"))
    if not place.exists():
        place.mkdir(mode=0o700)
        (place / _OWNER).write_text(str(folder), encoding="utf-8")
        os.chown(place, user, -1)
    return place


def write_private(path: Path, text: str, *, user: int | None) -> None:
    """Replace a file that only `user` reads; None: only ourselves. A reader sees the old text or the new one."""
    staging = path.with_name(f"{path.name}.new")
    staging.unlink(missing_ok=True)
    staging.touch(mode=0o600)
    staging.write_text(text, encoding="utf-8")
    if user is not None:
        os.chown(staging, user, -1)
    staging.replace(path)


def _remove_orphaned_places() -> None:
    """Remove places without a server folder: the process that should have called `destroy` was killed."""
    for owner in _SHARED_PLACE.glob(f"flashsale-*/{_OWNER}"):
        try:
            orphaned = owner.stat().st_uid == os.geteuid() and not Path(owner.read_text(encoding="utf-8")).exists()
        except FileNotFoundError:  # its owner is removing it
            continue
        if orphaned:
            shutil.rmtree(owner.parent, ignore_errors=True)
