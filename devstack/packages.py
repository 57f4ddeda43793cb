"""Programs that a full stack needs from the distribution: which are missing, and their installation as root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from devstack import pgbouncer, rabbitmq
from ops.stack_file import StackError

INSTALL_S_MAX: Final = 600.0


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package, and whether its program is there."""

    name: str
    purpose: str
    is_there: Callable[[], bool]


def needed(*, queue_is_rabbitmq: bool, event_log_is_kafka: bool) -> list[Package]:
    """The packages of a full stack with these carriers. Kafka itself comes from Maven Central."""
    packages = [Package(pgbouncer.PACKAGE, "pools of connections", lambda: pgbouncer.program() is not None)]
    if queue_is_rabbitmq:
        packages.append(Package("rabbitmq-server", "work queues", lambda: rabbitmq.programs_folder() is not None))
    if event_log_is_kafka:
        packages.append(Package("openjdk-17-jre-headless", "Kafka", lambda: shutil.which("java") is not None))
        packages.append(Package("maven", "fetching Kafka", lambda: shutil.which("mvn") is not None))
    return packages


def install_missing(packages: list[Package], say: Callable[[str], None]) -> None:
    """Install the missing ones with apt-get as root, and say so.

    StackError with the command for an ordinary user, and when apt-get fails.
    """
    missing = [package for package in packages if not package.is_there()]
    if not missing:
        return
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *(package.name for package in missing)]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise StackError(
            f"a full stack needs {_listed(missing)}; run as root: {' '.join(command)} "
            f"(or name PgBouncer by {pgbouncer.PROGRAM_VARIABLE}, RabbitMQ by RABBITMQ_HOME)"
        )
    say(f"Installing {_listed(missing)}: {' '.join(command)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise StackError(f"apt-get did not end within {INSTALL_S_MAX:.0f} s: run it yourself") from None
    if done.returncode != 0:
        raise StackError(f"apt-get failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    if left := [package for package in missing if not package.is_there()]:
        raise StackError(f"{_listed(left)} installed, but its program is not where it should be")


def _listed(packages: list[Package]) -> str:
    return ", ".join(f"{package.name} ({package.purpose})" for package in packages)
