"""A running peer: its process, a Redis of its own, and its orders."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from uuid import UUID

import redis

from devstack.children import free_port, log_tail, spawn
from devstack.program import responds
from devstack.servers import RedisServer
from perf.peers.building import LANGUAGES, SCRIPT
from perf.processes import end
from perf.stage import START_S_MAX, StageError

_ORDERS = "orders"
_AS_THE_EDGE = ("chrt", "--batch", "0")  # the scheduling policy that the edge sets for itself


@dataclass(slots=True)
class Peer:
    """The peer of a language with some stock."""

    language: str
    url: str
    process: Popen[bytes]
    server: RedisServer
    redis: redis.Redis

    def orders(self) -> int:
        """Orders in its stream."""
        return int(self.redis.xlen(_ORDERS))


@contextmanager
def running_peer(
    language: str,
    folder: Path,
    *,
    keys_file: Path,
    sale_id: UUID,
    stock: Mapping[str, int],
    durable: bool = True,
    workers: int = 1,
) -> Iterator[Peer]:
    """Build and start the peer; everything it has made is removed afterwards. PeerNotBuilt, StageError.

    The peer has what the edge has: its scheduling policy, and in Rust as many threads as the edge has `workers`. More
    threads cost the Rust peer a quarter more processor time an order on 2 cores. The Go peer is slower with one.
    """
    executable = LANGUAGES[language].build()
    home = folder / f"peer-{language.lower()}"
    home.mkdir()
    server = RedisServer(home / "redis", maxmemory="8gb", durable=durable)
    process = None
    try:
        server.start()
        with redis.Redis(port=server.port, decode_responses=True) as client:
            client.mset({f"stock:{sku}": units for sku, units in stock.items()})
            port, log = free_port(), home / "peer.log"
            command = [
                *_AS_THE_EDGE, str(executable), "-listen", f"127.0.0.1:{port}", "-redis", server.url, "-keys", str(keys_file),
                "-script", str(SCRIPT), "-sale", str(sale_id),
            ]  # fmt: skip
            environ = {**os.environ, "TOKIO_WORKER_THREADS": str(workers)}
            process = spawn(command, env=environ, log=log, cwd=home)
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_S_MAX
            while not responds(f"{url}/readyz"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise StageError(f"the {language} peer did not start: {log_tail(log)}")
                time.sleep(0.05)
            yield Peer(language, url, process, server, client)
    finally:
        if process is not None:
            end(process)
        server.destroy()
