"""The memory of users' rates that the workers of one edge share: a file in the folder of its snapshots."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Final

USERS_MAX: Final = 262_144  # whose rates are remembered at once
_SLOT_BYTES: Final = 16


def shared_rates(folder: Path) -> mmap.mmap:
    """The memory, empty when the first worker of the edge asks for it. Removed with the folder."""
    descriptor = os.open(folder / "rates", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, USERS_MAX * _SLOT_BYTES)  # keeps what is there
        return mmap.mmap(descriptor, USERS_MAX * _SLOT_BYTES)
    finally:
        os.close(descriptor)
