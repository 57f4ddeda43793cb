"""A small file system in memory (tmpfs) that a drill fills and frees. Needs the permission to mount."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from faults.conditions import NotFired, NotHere

RESIZE_TRIES = 20


@dataclass(frozen=True, slots=True)
class SmallDisk:
    """A mounted tmpfs of `size_mb`. It uses only as much memory as its files."""

    path: Path
    size_mb: int

    def fill(self) -> None:
        """Make it as small as its content: nothing more fits."""
        for _ in range(RESIZE_TRIES):  # the content may grow between the two calls
            disk = os.statvfs(self.path)
            if self._resize(f"{(disk.f_blocks - disk.f_bfree) * disk.f_frsize}"):
                return
        raise NotFired("the small disk could not be filled")

    def free(self) -> None:
        """Give it its whole size again."""
        if not self._resize(f"{self.size_mb}m"):
            raise NotFired("the small disk could not be enlarged again")

    def _resize(self, size: str) -> bool:
        resize = ["mount", "-o", f"remount,size={size}", str(self.path)]
        return subprocess.run(resize, capture_output=True, check=False).returncode == 0


@contextmanager
def small_disk(size_mb: int, *, mode: int) -> Iterator[SmallDisk]:
    """A small disk with this mode of its root folder, while the block runs. NotHere without the permission to mount."""
    path = Path(tempfile.mkdtemp(prefix="flashsale-small-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode={mode:04o}", "flashsale", str(path)]
    try:
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            raise NotHere("a small tmpfs cannot be mounted here (needs root)")
        try:
            yield SmallDisk(path, size_mb)
        finally:
            subprocess.run(["umount", "-l", str(path)], capture_output=True, check=False)  # noqa: S607 - of the system
    finally:
        path.rmdir()
