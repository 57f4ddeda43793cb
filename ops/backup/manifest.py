"""The manifest of a backup: its contents, and the check sum of each file. A folder without a manifest is no backup."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from ops.backup.errors import BackupError

FILE: Final = "manifest.json"
FORMAT: Final = 1
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """`parent`: the id of the backup that this one is the difference from; None: it is complete by itself.

    `fingerprint`: of the cluster settings. `redis`: server -> file and address's database. `postgres`: server -> facts.
    `files`: path in the folder -> SHA-256, of everything but the manifest.
    """

    id: str
    created_at: str
    fingerprint: str
    parent: str | None
    redis: dict[str, dict[str, Any]]
    postgres: dict[str, dict[str, Any]]
    files: dict[str, str] = field(repr=False)
    format: int = FORMAT

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest in a folder. Raises BackupError."""
        try:
            document = json.loads((folder / FILE).read_text(encoding="utf-8"))
            if document.get("format") != FORMAT:
                raise BackupError(f"{folder}: made by another version (format {document.get('format')})")
            return cls(**document)
        except FileNotFoundError:
            raise BackupError(f"{folder}: no complete backup, it has no {FILE}") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise BackupError(f"{folder}: {FILE} is damaged: {error}") from error

    def write(self, folder: Path) -> None:
        """Write it beside the files it names, durably."""
        staging = folder / f".{FILE}"
        with staging.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        staging.rename(folder / FILE)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in the folder, by its path; the manifest is left out."""
    return {str(path.relative_to(folder)): _sum(path) for path in _files(folder)}


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (FILE, f".{FILE}"):
            yield path


def _sum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def damage(folder: Path, manifest: Manifest) -> list[str]:
    """Missing, changed and foreign files of a backup, a sentence each."""
    found = sums(folder)
    missing = [f"{name}: missing" for name in sorted(manifest.files.keys() - found.keys())]
    foreign = [f"{name}: not part of the backup" for name in sorted(found.keys() - manifest.files.keys())]
    changed = [
        f"{name}: changed"
        for name in sorted(manifest.files.keys() & found.keys())
        if manifest.files[name] != found[name]
    ]
    return missing + changed + foreign
