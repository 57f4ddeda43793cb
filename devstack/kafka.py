"""A real Kafka: one process that is broker and controller (KRaft), with Java 17. The stack and the tests use it.

Does not supervise: `devstack.supervisor` restarts servers that end.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import hashlib
import os
import secrets
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from devstack.children import free_port, spawn
from devstack.kafka_jars import java, kafka_jars
from devstack.server_process import ServerError, ServerProcess
from domain.topology import TOPICS
from runtime.event_log import KafkaAccess

READY_S_MAX = 60.0
PROBE_S_MAX = 2.0
HEAP_MB = 256
_LOGGING = Path(__file__).with_name("kafka_log4j2.xml")
_NODE_ID = 1
_API_VERSIONS = 18


@dataclass(frozen=True, slots=True)
class Listener:
    """A further door for clients: its protocol, its port, and the port that clients are told (a proxy's, say)."""

    name: str
    port: int
    advertised_port: int
    protocol: str = "PLAINTEXT"

    def settings(self) -> tuple[str, str, str]:
        """The parts of `listeners`, `advertised.listeners` and `listener.security.protocol.map`."""
        return (
            f"{self.name}://127.0.0.1:{self.port}",
            f"{self.name}://127.0.0.1:{self.advertised_port}",
            f"{self.name}:{self.protocol}",
        )


@dataclass(slots=True)
class KafkaServer(ServerProcess):
    """One Kafka node with its data under `folder`; loopback only, no encryption, no password.

    `properties` are further lines of the server's configuration, `doors` further listeners. `quick_start` compiles
    less: the server starts sooner and reaches a lower throughput.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    controller_port: int = field(default_factory=free_port)
    heap_mb: int = HEAP_MB
    properties: Mapping[str, str] = field(default_factory=dict)
    doors: Sequence[Listener] = ()
    quick_start: bool = False
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """`host:port` for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """`kafka://` address."""
        return f"kafka://{self.address}"

    @property
    def argv(self) -> list[str]:
        """The command line; the supervisor uses it, too."""
        return [
            *java_command(heap_mb=self.heap_mb),
            *(("-XX:TieredStopAtLevel=1",) if self.quick_start else ()),
            *("kafka.Kafka", str(self.folder / "server.properties")),
        ]

    @property
    def env(self) -> dict[str, str]:
        """The environment to run in."""
        return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"}

    @property
    def log(self) -> Path:
        """Path of the server's log."""
        return self.folder / "kafka.log"

    @property
    def data(self) -> Path:
        """Folder of the topics."""
        return self.folder / "data"

    def initialise(self) -> None:
        """Write the configuration, and the identity of a new node. Fetches Kafka if it is not in the cache."""
        class_archive()
        self.write_configuration()

    def write_configuration(self) -> None:
        """Write the server's files. The class archive may be missing."""
        self.data.mkdir(parents=True, exist_ok=True)
        path = self.folder / "server.properties"
        path.touch(mode=0o600)
        path.write_text("".join(f"{name}={value}\n" for name, value in self._settings().items()), encoding="utf-8")
        # The tool that writes this file is another Java process, which takes longer than the start of the server.
        identity = self.data / "meta.properties"
        if not identity.exists():
            identity.write_text(f"version=1\nnode.id={_NODE_ID}\ncluster.id={_new_id()}\n", encoding="ascii")

    def _settings(self) -> dict[str, str]:
        own = Listener("PLAINTEXT", self.port, self.port)
        listeners, advertised, protocols = zip(*(door.settings() for door in (own, *self.doors)), strict=True)
        return {
            "process.roles": "broker,controller",
            "node.id": str(_NODE_ID),
            "controller.quorum.voters": f"{_NODE_ID}@127.0.0.1:{self.controller_port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listeners": ",".join((*listeners, f"CONTROLLER://127.0.0.1:{self.controller_port}")),
            "advertised.listeners": ",".join(advertised),
            "listener.security.protocol.map": ",".join((*protocols, "CONTROLLER:PLAINTEXT")),
            "log.dirs": str(self.data),
            # Topics come from `flashsale migrate` with their partitions; a typing error must not create one.
            "auto.create.topics.enable": "false",
            # One node, so one replica of everything.
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            # Positions of a group that reads a quiet topic must outlive the topic's records.
            "offsets.retention.minutes": "525600",
            # After a kill, the controller keeps the old session of the broker for this time.
            "broker.session.timeout.ms": "2000",
            "broker.heartbeat.interval.ms": "500",
            "group.initial.rebalance.delay.ms": "0",
            # Without these records of no content, each of which is a write, an idle broker rests.
            "metadata.max.idle.interval.ms": "0",
            "num.network.threads": "2",
            "num.io.threads": "2",
            "background.threads": "2",
            "log.cleaner.dedupe.buffer.size": "8388608",
            **self.properties,
        }

    def start(self) -> None:
        """Start the server and return when it answers. Raises ServerError."""
        self.initialise()
        self.process = spawn(self.argv, env=self.env, log=self.log)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Return when the server answers. ServerError when it has ended or takes too long."""
        self.await_ready(self.answers, name=f"Kafka on port {self.port}", logs=(self.log,), s_max=READY_S_MAX)

    def answers(self) -> bool:
        """Whether the broker answers a client's first request: it has joined its cluster then."""
        return answers(self.port)

    def create_topics(self) -> None:
        """Create the project's topics, as `flashsale migrate` does. Raises TopicsDiffer."""
        # Here: a stack without Kafka does not load the client.
        from runtime.event_log.kafka_topics import TopicSettings, create_topics

        asyncio.run(create_topics(self.url, TOPICS, KafkaAccess(), TopicSettings()))

    def add_user(self, name: str, password: str, *, mechanism: str = "SCRAM-SHA-512") -> None:
        """Create a user for the login at a door with SASL. Raises ServerError."""
        added = f"{mechanism}=[password={password}]"
        argv = [
            *java_command(heap_mb=64), "kafka.admin.ConfigCommand", "--bootstrap-server", self.address, "--alter",
            "--add-config", added, "--entity-type", "users", "--entity-name", name,
        ]  # fmt: skip
        done = subprocess.run(argv, capture_output=True, text=True, timeout=READY_S_MAX, env=self.env, check=False)
        if done.returncode != 0:
            raise ServerError(f"the user was not created: {(done.stdout + done.stderr).strip()[-500:]}")

    def destroy(self) -> None:
        """Stop the server and remove its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def answers(port: int) -> bool:
    """Whether a Kafka broker on this loopback port answers an ApiVersions request.

    int32 size | int16 api key, int16 api version, int32 correlation id, int16 length, client id
    """
    client = b"probe"
    body = struct.pack(">hhih", _API_VERSIONS, 0, 7, len(client)) + client
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PROBE_S_MAX) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            answer = connection.recv(10)
    except OSError:
        return False
    return len(answer) == 10 and answer[4:8] == b"\0\0\0\7" and answer[8:10] == b"\0\0"


def java_command(*, heap_mb: int) -> list[str]:
    """Java with Kafka's jars; a class of Kafka and its arguments follow."""
    jars = kafka_jars()
    classpath = ":".join(sorted(str(jar) for jar in jars.glob("*.jar")))
    return [
        java(), f"-Xmx{heap_mb}m", "-XX:+UseSerialGC", "-Xshare:auto", f"-XX:SharedArchiveFile={_archive_path(jars)}",
        "-Xlog:disable", "-Xlog:all=error", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true",
        f"-Dlog4j2.configurationFile={_LOGGING}", "-cp", classpath,
    ]  # fmt: skip


def _archive_path(jars: Path) -> Path:
    """One archive for each Java: another Java does not accept it."""
    found = Path(java()).resolve()
    stat = found.stat()
    key = hashlib.sha256(f"{found} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:8]
    return jars / f"classes-{key}.jsa"


def class_archive() -> Path:
    """The archive of loaded classes (AppCDS), which halves the work of a start; made once, by a server of its own."""
    jars = kafka_jars()
    archive = _archive_path(jars)
    if archive.exists():
        return archive
    with (jars / "archive.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            _make_archive(jars, archive)
    return archive


def _make_archive(jars: Path, archive: Path) -> None:
    with tempfile.TemporaryDirectory(dir=jars, prefix="archive-") as place:
        server = KafkaServer(Path(place))
        server.write_configuration()
        made = Path(place) / "made.jsa"
        argv = [part for part in server.argv if not part.startswith("-XX:SharedArchiveFile")]
        argv.insert(1, f"-XX:ArchiveClassesAtExit={made}")
        server.process = spawn(argv, env=server.env, log=server.log)
        try:
            server.wait_ready()
            server.process.terminate()
            server.process.wait(READY_S_MAX)
        except (ServerError, subprocess.TimeoutExpired) as error:
            server.kill()
            raise ServerError(f"the archive of Kafka's classes was not made: {error}") from error
        made.replace(archive)


def _new_id() -> str:
    """A random UUID as Kafka writes it: base64url without padding."""
    return base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
