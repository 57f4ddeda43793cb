"""Starts processes that end when their parent ends. Does not supervise."""

from __future__ import annotations

import ctypes
import os
import pwd
import random
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.process.errors import OperatorError

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_PORT_LOW = 15_000
# A full stack chooses some 50 ports before it listens on the first: by chance alone, two would often be the same.
_given: deque[int] = deque(maxlen=256)
PORTS_VARIABLE = "DEVSTACK_PORTS"  # "15000-19999": the range to choose free ports from


class Unsupported(OperatorError):
    """The machine has no free port."""


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log: Path,
    cwd: Path | str = "/",
    user: int | None = None,
    orphan_signal: signal.Signals = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """Start `argv` in its own session, without our descriptors, and append its output to `log`.

    The kernel sends `orphan_signal` to the process when the calling thread ends for any reason: call this from the main
    thread. `user` is a uid to run as (root only).
    """
    parent = os.getpid()

    def tie_to_parent() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(orphan_signal), 0, 0, 0)
        if os.getppid() != parent:  # the parent died before prctl
            os._exit(1)

    with open(log, "ab", opener=_open_private) as sink:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, env=dict(env), cwd=cwd, user=user,
            group=None if user is None else pwd.getpwuid(user).pw_gid, extra_groups=None if user is None else (),
            start_new_session=True, preexec_fn=tie_to_parent,
        )  # fmt: skip


def _open_private(path: str, flags: int) -> int:
    """Logs may quote addresses and names: only their owner reads them."""
    return os.open(path, flags, 0o600)


def free_port() -> int:
    """A free TCP port on the loopback address, below the kernel's range for outgoing connections.

    In that range, a client that keeps reconnecting to a killed server would sooner or later get the server's own port,
    connect to itself, and block the port. Another process may take the port before the caller does.
    """
    ports = ports_to_choose_from()
    for attempt in range(200):
        port = random.choice(ports)  # noqa: S311 - no secret
        if port_is_free(port) and (port not in _given or attempt >= 100):
            _given.append(port)
            return port
    raise Unsupported(f"no free port between {ports.start} and {ports.stop - 1}")


def ports_to_choose_from() -> range:
    """The ports of `free_port`: those of DEVSTACK_PORTS, else all below the kernel's range for outgoing connections."""
    chosen = os.environ.get(PORTS_VARIABLE)
    if chosen:
        low, _, high = chosen.partition("-")
        return range(int(low), int(high) + 1)
    text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    high_port = int(text.split()[0])
    return range(_PORT_LOW if high_port > _PORT_LOW + 1000 else 1024, high_port)


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no obstacle
        try:
            sock.bind((host, port))
        except OSError:
            return False
        return True


def log_tail(path: Path, length: int = 2000) -> str:
    """The end of a log, for error messages."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - length))
            return file.read().decode(errors="replace")
    except OSError:
        return "(no log)"


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
