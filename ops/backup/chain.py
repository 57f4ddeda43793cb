"""The backups that one rests on: a complete one, then each difference. All are in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ops.backup.errors import BackupError
from ops.backup.manifest import FILE, Manifest

LENGTH_MAX: Final = 30


def find(root: Path, backup_id: str) -> Path:
    """The folder of a backup by its id, or by `latest`. Raises BackupError."""
    if backup_id == "latest":
        complete = sorted(path.parent for path in root.glob(f"*/{FILE}"))
        if not complete:
            raise BackupError(f"{root}: no complete backup in this folder")
        return complete[-1]
    folder = root / backup_id
    if Path(backup_id).name != backup_id or not folder.is_dir():
        raise BackupError(f"{root}: no backup {backup_id}")
    return folder


def chain_of(root: Path, folder: Path) -> list[tuple[Path, Manifest]]:
    """The backup and those that it rests on, the complete one first. Raises BackupError."""
    chain = [(folder, Manifest.read(folder))]
    while (parent := chain[0][1].parent) is not None:
        if len(chain) >= LENGTH_MAX:
            raise BackupError(f"{folder.name}: rests on more than {LENGTH_MAX} backups")
        try:
            earlier = find(root, parent)
        except BackupError:
            raise BackupError(f"{folder.name}: rests on {parent}, which is not in {root}") from None
        chain.insert(0, (earlier, Manifest.read(earlier)))
    return chain
