"""Kafka's jars: fetched once by Maven into a cache outside the repository, compared with pinned SHA-256 sums.

The cache is `~/.cache/flashsale/kafka-<version>` (`XDG_CACHE_HOME`, or DEVSTACK_CACHE for another folder). Maven uses
its own settings, mirrors included. Two processes that need the jars at once wait for one download.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from runtime.process.errors import OperatorError

CACHE_VARIABLE = "DEVSTACK_CACHE"
FETCH_S_MAX = 300.0
_POM = Path(__file__).with_name("kafka_pom.xml")
_SUMS = Path(__file__).with_name("kafka_jars.sha256")
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_COMPLETE = "complete"


class KafkaNotProvided(OperatorError):
    """Java or Kafka's jars are missing, and the message says how to get them."""


def java() -> str:
    """Path of the Java runtime. Raises KafkaNotProvided."""
    found = shutil.which("java")
    if found is None:
        raise KafkaNotProvided("Kafka needs Java 17: install it (Debian: apt-get install openjdk-17-jre-headless)")
    return found


def pinned_sums() -> dict[str, str]:
    """SHA-256 by the name of a jar."""
    lines = _SUMS.read_text(encoding="ascii").split("\n")
    return {name: digest for digest, name in (line.split() for line in lines if line)}


def version() -> str:
    """Kafka's version, as in the list of its jars."""
    match = re.search(r"kafka_2\.13-([\d.]+)\.jar", _SUMS.read_text(encoding="ascii"))
    assert match is not None
    return match[1]


def cache_folder() -> Path:
    """The folder of the jars and of the class archive; its name has the version and the sum of the list of jars."""
    chosen = os.environ.get(CACHE_VARIABLE)
    root = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flashsale"
    listed = hashlib.sha256(_SUMS.read_bytes()).hexdigest()[:8]
    return root / f"kafka-{version()}-{listed}"


def kafka_jars() -> Path:
    """The folder with the jars; fetches them if it is not complete. Raises KafkaNotProvided."""
    folder = cache_folder()
    if (folder / _COMPLETE).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / _COMPLETE).exists():
            _fetch(folder)
            (folder / _COMPLETE).touch()
    return folder


def _fetch(folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaNotProvided("Kafka's jars come from Maven Central: install Maven (Debian: apt-get install maven)")
    with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as staging:
        argv = [
            maven, "--quiet", "--batch-mode", "--file", str(_POM), _PLUGIN, "-DincludeScope=runtime",
            f"-DoutputDirectory={staging}",
        ]  # fmt: skip
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=FETCH_S_MAX, cwd=folder, check=False)
        except subprocess.TimeoutExpired as error:
            raise KafkaNotProvided(f"Maven did not fetch Kafka's jars within {FETCH_S_MAX:.0f} s: try again") from error
        if done.returncode != 0:
            raise KafkaNotProvided(f"Maven did not fetch Kafka's jars: {(done.stdout + done.stderr)[-2000:].strip()}")
        fetched = {jar.name: jar for jar in Path(staging).glob("*.jar")}
        check_sums({name: hashlib.sha256(jar.read_bytes()).hexdigest() for name, jar in fetched.items()})
        for name, jar in fetched.items():
            jar.replace(folder / name)


def check_sums(found: dict[str, str]) -> None:
    """Compare jars with the pinned sums. Raises KafkaNotProvided that names each difference."""
    pinned = pinned_sums()
    wrong = sorted(name for name in pinned.keys() | found.keys() if pinned.get(name) != found.get(name))
    if wrong:
        raise KafkaNotProvided(
            f"Kafka's jars differ from devstack/kafka_jars.sha256: {', '.join(wrong)}. Do not use them: the repository "
            "that Maven used has other files than the pinned ones"
        )
