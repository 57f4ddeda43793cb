"""Builds the peers into the user's cache, once for each state of their sources."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
SCRIPT: Final = HERE / "order.lua"
BUILD_S_MAX: Final = 1200.0  # a first build compiles all libraries
NICE: Final = ("nice", "-n", "10")  # a first build takes minutes of both cores of a small machine


class PeerNotBuilt(Exception):
    """A peer cannot be built; the message says what to install, or is the compiler's."""


@dataclass(frozen=True, slots=True)
class Language:
    """One peer. `tool` compiles it; `package` is the Debian package of the tool."""

    name: str
    tool: str
    package: str
    sources: tuple[str, ...]

    def build(self) -> Path:
        """The executable file; PeerNotBuilt. Uses the network for libraries that are not there yet."""
        if shutil.which(self.tool) is None:
            raise PeerNotBuilt(
                f"{self.tool} is not installed: install the Debian package `{self.package}`, or use --without-peers"
            )
        folder = _cache() / f"peer-{self.name}-{self._fingerprint()}"
        executable = folder / "peer"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second builder waits, and then finds the file
            if not executable.exists():
                self._compile(folder, executable)
        return executable

    def _compile(self, folder: Path, executable: Path) -> None:
        source = HERE / self.name
        made = folder / "made"
        if self.tool == "go":
            command = ["go", "build", "-mod=readonly", "-o", str(made), "."]
        else:
            command = ["cargo", "build", "--release", "--locked", "--target-dir", str(folder / "target")]
            made = folder / "target" / "release" / "peer"
        try:
            done = subprocess.run(
                [*NICE, *command], cwd=source, capture_output=True, text=True, timeout=BUILD_S_MAX, check=False
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise PeerNotBuilt(f"the {self.name} peer was not built within {BUILD_S_MAX:.0f} s") from error
        if done.returncode:
            raise PeerNotBuilt(f"the {self.name} peer cannot be built: {done.stderr[-2000:]}")
        # Under its name only when it is whole: a build that was interrupted begins again.
        made.replace(executable)
        shutil.rmtree(folder / "target", ignore_errors=True)

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name in self.sources:
            digest.update((HERE / self.name / name).read_bytes())
        return digest.hexdigest()[:16]


LANGUAGES: Final = {
    "Go": Language("go", "go", "golang-go", ("main.go", "go.mod", "go.sum")),
    "Rust": Language("rust", "cargo", "cargo", ("src/main.rs", "Cargo.toml", "Cargo.lock")),
}


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flashsale"
