"""Builds the image with buildah and runs it with runc: no Docker, no image registry. Needs root.

The public base image cannot be fetched where this runs, so a Debian of the same release takes its place (mmdebstrap).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.devstack.compose_file import ROOT

TOOLS = ("buildah", "mmdebstrap", "runc")
BASE = "localhost/flashsale-test-base"
BUILD_S_MAX = 1800.0
_CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"


def install_tools() -> str | None:
    """Install missing tools. Returns the reason if they cannot be had."""
    if os.geteuid() != 0:
        return "building and running containers here needs root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing and (apt := shutil.which("apt-get")):
        subprocess.run([apt, "update", "-qq"], check=False, capture_output=True)
        argv = [apt, "install", "-qq", "-y", "--no-install-recommends", *missing]
        subprocess.run(argv, check=False, capture_output=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def make_base(work: Path) -> None:
    """A Debian 12 with Python, as the Dockerfile's BASE. Trusts the certificates that this machine trusts."""
    tree = work / "base.tar"
    packages = "python3,python3-venv,python3-dev,ca-certificates"
    _run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", "bookworm", str(tree))
    container = _run("buildah", "from", "scratch")
    _run("buildah", "add", "--quiet", container, str(tree), "/")
    _run("buildah", "copy", "--quiet", container, f"/{_CERTIFICATES}", f"/{_CERTIFICATES}")
    _run("buildah", "commit", "--quiet", "--rm", container, BASE)
    tree.unlink()


def build(target: str) -> str:
    """The name of the image of a target of the Dockerfile."""
    name = f"localhost/flashsale-test-{target}"
    _run(
        "buildah", "bud", "--isolation", "chroot", "--layers", "--quiet", "--build-arg", f"BASE={BASE}",
        "--target", target, "--tag", name, str(ROOT),
    )  # fmt: skip
    return name


@dataclass(frozen=True, slots=True)
class Image:
    """A built image, mounted. `config` is that of the image: user, environment, command."""

    root: Path
    config: Mapping[str, Any]
    work: Path

    def argv(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], *, binds: Sequence[Path] = ()
    ) -> list[str]:
        """The command line that runs a container in the foreground, with the rights that docker-compose.yml gives.

        Own processes, files and users; the root file system is read-only, /tmp in memory; no capability. The network is
        that of this machine. `binds` are visible at their own path, read-only.
        """
        bundle = self.work / name
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(self._specification(command, environment, binds)))
        return [
            "runc",
            "--root",
            str(self.work / "runc"),
            "run",
            "--bundle",
            str(bundle),
            f"flashsale-test-{os.getpid()}-{name}",
        ]

    def run(self, name: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        argv = self.argv(name, command, environment)
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)

    def _specification(
        self, command: Sequence[str], environment: Mapping[str, str], binds: Sequence[Path]
    ) -> dict[str, Any]:
        uid, gid = map(int, self.config["User"].split(":"))
        flags = ["nosuid", "nodev"]
        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755"],
            },
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*flags, "mode=1777"]},  # noqa: S108
            {"destination": "/tmp", "type": "tmpfs", "source": "tmp", "options": [*flags, "mode=1777"]},  # noqa: S108
            *({"destination": str(p), "type": "bind", "source": str(p), "options": ["bind", "ro"]} for p in binds),
        ]
        given = [*self.config["Env"], *(f"{name}={value}" for name, value in environment.items())]
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": uid, "gid": gid}, "args": list(command), "env": given, "cwd": "/",
                "noNewPrivileges": True,
                "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")},
            },
            "root": {"path": str(self.root), "readonly": True},
            "hostname": "flashsale",
            "mounts": mounts,
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
        }  # fmt: skip


@contextmanager
def mounted(name: str, work: Path) -> Iterator[Image]:
    """The files of an image, while the block runs."""
    container = _run("buildah", "from", "--pull-never", name)
    try:
        config = json.loads(_run("buildah", "inspect", "--type", "image", name))["OCIv1"]["config"]
        yield Image(Path(_run("buildah", "mount", container)), config, work)
        _run("buildah", "umount", container)
    finally:
        _run("buildah", "rm", container)


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=BUILD_S_MAX)
    assert done.returncode == 0, f"{' '.join(argv)}\n{(done.stdout + done.stderr)[-4000:]}"
    return done.stdout.strip()
