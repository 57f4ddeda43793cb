"""A real RabbitMQ of the distribution's package: its configuration, its start, its end. The stack and the tests use it.

Works as root and as an ordinary user: own folder, own node name, own ports, own Erlang cookie, and an own `epmd` (the
port mapper of Erlang), which would otherwise stay behind as a daemon. Does not supervise.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from devstack.children import free_port, spawn
from devstack.server_process import READY_S_MAX, ServerError, ServerProcess

HOST = "localhost"  # of the node's name: needs no other name of this machine
USER = "flashsale"
VHOST = "flashsale"
# The broker closes the channel of a consumer that holds a message for longer, and its messages go to another consumer.
# A writer may pause as long as its database is away; redelivery afterwards costs a comparison with stored rows.
CONSUMER_TIMEOUT_MS = 1_800_000
# A delay queue whose target did not confirm sends its message again after this time (default: 3 minutes).
RETURN_CONFIRM_MS = 5_000
WAL_BYTES_MAX = 64 * 1024 * 1024
MEMORY_MB_MAX = 1024
DISK_FREE_MB_MIN = 100
CONTROL_S_MAX = 60.0
_PLACES = (Path("/usr/lib/rabbitmq/bin"), Path("/opt/rabbitmq/sbin"), Path("/usr/local/lib/rabbitmq/sbin"))
HOW_TO_INSTALL = (
    "RabbitMQ is not installed: `apt-get install rabbitmq-server` (Debian, Ubuntu; the service need not run), "
    "or set RABBITMQ_HOME to an unpacked generic-unix release (needs Erlang)"
)


def programs_folder() -> Path | None:
    """The folder of `rabbitmq-server` and `rabbitmqctl`; None where RabbitMQ is not installed.

    Not /usr/sbin: the wrappers there switch to the package's own user and folders.
    """
    home = os.environ.get("RABBITMQ_HOME")
    places = (Path(home) / "sbin",) if home else _PLACES
    return next((place for place in places if (place / "rabbitmq-server").exists() and shutil.which("erl")), None)


@dataclass(slots=True)
class Epmd(ServerProcess):
    """Erlang's port mapper in the foreground, for the nodes of one folder."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def argv(self) -> list[str]:
        """The command line; the supervisor uses it, too."""
        program = shutil.which("epmd")
        if program is None:
            raise ServerError(HOW_TO_INSTALL)
        return [program, "-port", str(self.port), "-address", "127.0.0.1"]

    def start(self) -> None:
        """Start, and return when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        env = {"PATH": os.environ.get("PATH", "")}
        self.process = spawn(self.argv, env=env, log=self.folder / "epmd.log")
        log = self.folder / "epmd.log"
        self.await_ready(lambda: accepts(self.port), name=f"epmd on port {self.port}", logs=(log,))


@dataclass(slots=True)
class RabbitServer(ServerProcess):
    """A RabbitMQ node with its data under `folder`; AMQP on loopback, user `flashsale`, virtual host `flashsale`.

    `certificates` (CA, certificate, key) add a TLS listener on `tls_port`.
    """

    folder: Path
    epmd_port: int
    password: str = field(repr=False)
    port: int = field(default_factory=free_port)
    dist_port: int = field(default_factory=free_port)
    certificates: tuple[Path, Path, Path] | None = None
    tls_port: int = field(default_factory=free_port)
    name: str = "rabbit"
    process: subprocess.Popen[bytes] | None = None

    @property
    def node(self) -> str:
        """Name of the Erlang node. Data belongs to a node's name: it stays the same over restarts."""
        return f"flashsale-{self.name}@{HOST}"

    @property
    def url(self) -> str:
        """`amqp://` address of the virtual host. Contains the password: never log it."""
        return f"amqp://{USER}:{quote(self.password, safe='')}@127.0.0.1:{self.port}/{VHOST}"

    @property
    def log(self) -> Path:
        """Path of the server's log."""
        return self.folder / "log" / "rabbit.log"

    @property
    def argv(self) -> list[str]:
        """The command line; the supervisor uses it, too."""
        return [str(self._programs / "rabbitmq-server")]

    @property
    def _programs(self) -> Path:
        folder = programs_folder()
        if folder is None:
            raise ServerError(HOW_TO_INSTALL)
        return folder

    @property
    def env(self) -> dict[str, str]:
        """The environment to run in: every path and port that RabbitMQ would choose by itself."""
        return {
            "PATH": os.environ.get("PATH", ""),
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "HOME": str(self.folder),  # of the Erlang cookie
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "no-rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            # `exec` instead of a shell that waits: signals and SIGKILL reach the server itself.
            "RABBITMQ_ALLOW_INPUT": "1",
            # No busy waiting: the processes of the stack need the cores.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-noinput -start_epmd false +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"
            ),
            # Its tools take a free port each, and start no port mapper of their own.
            "RABBITMQ_CTL_ERL_ARGS": "-start_epmd false",
        }

    def initialise(self) -> None:
        """Write the configuration. Data, cookie and definitions stay as they are."""
        for folder in (self.folder, self.folder / "data", self.folder / "log"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            _write_private(cookie, secrets.token_hex(16))
            cookie.chmod(0o400)
        (self.folder / "enabled_plugins").write_text("[].\n", encoding="ascii")
        _write_private(self.folder / "rabbitmq.conf", "\n".join(self._configuration()) + "\n")
        (self.folder / "advanced.config").write_text(
            f"[{{rabbit, [{{dead_letter_worker_publisher_confirm_timeout, {RETURN_CONFIRM_MS}}}]}}].\n",
            encoding="ascii",
        )

    def _configuration(self) -> list[str]:
        lines = [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            f"default_user = {USER}",
            f"default_pass = {self.password}",
            f"default_vhost = {VHOST}",
            f"consumer_timeout = {CONSUMER_TIMEOUT_MS}",
            f"vm_memory_high_watermark.absolute = {MEMORY_MB_MAX}MB",
            f"disk_free_limit.absolute = {DISK_FREE_MB_MIN}MB",
            f"raft.wal_max_size_bytes = {WAL_BYTES_MAX}",
            "cluster_partition_handling = pause_minority",
            "collect_statistics_interval = 60000",
            "heartbeat = 10",
            f"log.file = {self.log.name}",
            "log.file.level = warning",
            "log.console = false",
        ]
        if self.certificates is not None:
            authority, certificate, key = self.certificates
            lines += [
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}",
                f"ssl_options.cacertfile = {authority}",
                f"ssl_options.certfile = {certificate}",
                f"ssl_options.keyfile = {key}",
                "ssl_options.versions.1 = tlsv1.3",
                "ssl_options.versions.2 = tlsv1.2",
            ]
        return lines

    def start(self) -> None:
        """Start the server and return when it accepts clients."""
        self.begin()
        self.wait_ready()

    def begin(self) -> None:
        """Start the server without waiting. Call this from the main thread."""
        self.initialise()
        self.process = spawn(self.argv, env=self.env, log=self.folder / "startup.log", cwd=self.folder)

    def wait_ready(self) -> None:
        """Return when the server accepts clients. Raises ServerError."""
        logs = (self.folder / "startup.log", self.log)
        self.await_ready(self.is_ready, name=f"rabbitmq on port {self.port}", logs=logs, s_max=2 * READY_S_MAX)

    def is_ready(self) -> bool:
        """Whether the server greets clients: it listens as the last step of its start."""
        return accepts(self.port, b"AMQP\x00\x00\x09\x01")

    def control(self, *arguments: str) -> str:
        """The output of `rabbitmqctl`. Raises ServerError."""
        return self._tool("rabbitmqctl", *arguments)

    def queues(self, *arguments: str) -> str:
        """The output of `rabbitmq-queues`. Raises ServerError."""
        return self._tool("rabbitmq-queues", *arguments)

    def _tool(self, tool: str, *arguments: str) -> str:
        argv = [str(self._programs / tool), "--node", self.node, *arguments]
        try:
            done = subprocess.run(
                argv, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=CONTROL_S_MAX, check=False
            )
        except subprocess.TimeoutExpired:
            raise ServerError(f"{tool} {arguments[0]}: no end within {CONTROL_S_MAX:.0f} s") from None
        if done.returncode != 0:
            raise ServerError(f"{tool} {arguments[0]}: {done.stdout.strip()} {done.stderr.strip()}")
        return done.stdout

    def add_user(self, name: str, password: str, *, configure: str, write: str, read: str) -> str:
        """A user of the virtual host with these permissions (regular expressions). Returns its `amqp://` address."""
        self.control("add_user", name, password)
        self.control("set_permissions", "--vhost", VHOST, name, configure, write, read)
        return f"amqp://{name}:{quote(password, safe='')}@127.0.0.1:{self.port}/{VHOST}"


def accepts(port: int, greeting: bytes = b"") -> bool:
    """Whether a server listens on the port and, after a greeting, answers."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            if not greeting:
                return True
            connection.sendall(greeting)
            return bool(connection.recv(1))
    except OSError:
        return False


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
