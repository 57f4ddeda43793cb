"""An edge on its own Redis and nothing else: shows the cost of the order path while no relay runs.

The append-only file is synced before each answer, on a disk: a memory file system would give better results.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from uuid import UUID

import redis

from devstack.children import free_port, log_tail, spawn
from devstack.demo.rehearsal import sigterm_as_interrupt
from devstack.program import responds
from devstack.servers import RedisServer
from domain import ids, topology
from domain.sales import LaneSaleState, SaleDefinition, SaleItem, Stock, spread
from domain.topology import Topology
from perf.processes import cpu_us, end, tree
from reservation.scripts import LOAD
from runtime.tokens.keys import create_token_keys

ROOT = Path(__file__).parent.parent
START_S_MAX = 30.0
PUBLISHED_AT_ONCE = 100
DISK = Path("/var/tmp")  # noqa: S108 - the folder in it has a random name and mode 0700
UNITS = 1_000_000_000


class StageError(Exception):
    """The edge did not start. The message is the end of its log."""


@dataclass(slots=True)
class Stage:
    """The running edge and its Redis."""

    folder: Path
    server: RedisServer
    redis: redis.Redis
    port: int
    edge: Popen[bytes] = field(init=False)

    @property
    def url(self) -> str:
        """The address for orders."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def keys_file(self) -> Path:
        """The key ring of buyers' tokens."""
        return self.folder / "keys.json"

    @property
    def worker_pid(self) -> int:
        """The serving worker of an edge with one worker: a child of the main process, like the resource tracker."""
        pids = [pid for pid in tree(self.edge.pid) if pid != self.edge.pid]
        return max(pids, key=lambda pid: cpu_us([pid]))

    def publish(self, stock: Mapping[str, int], *, lanes: int = 1) -> UUID:
        """Publish a sale that is open for a day, without a purchase limit; `stock` maps SKU to units."""
        return self.publish_many(stock, 1, lanes=lanes)[0]

    def publish_many(self, stock: Mapping[str, int], count: int, *, lanes: int = 1) -> list[UUID]:
        """Publish `count` equal sales, many per round trip, because each waits for the disk."""
        sales = [self._definition(stock, lanes) for _ in range(count)]
        shares = [spread(units, lanes=lanes) for units in stock.values()]
        source = LOAD.source
        for start in range(0, count, PUBLISHED_AT_ONCE):
            pipeline = self.redis.pipeline(transaction=False)
            for sale in sales[start : start + PUBLISHED_AT_ONCE]:
                for place, lane in enumerate(sale.lanes):
                    key = topology.lane_state_key(lane)
                    packed = [Stock.fresh(share[place], lanes=lanes).pack() for share in shares]
                    pipeline.eval(source, 1, key, ids.short(sale.sale_id), sale.pack_for_lane(), *packed)
                pipeline.set(topology.sale_key(sale.sale_id), json.dumps(sale.as_document()))
                pipeline.sadd(topology.SALES_KEY, str(sale.sale_id))
                pipeline.publish(topology.SALES_CHANNEL, str(sale.sale_id))
            pipeline.execute()
        return [sale.sale_id for sale in sales]

    def _definition(self, stock: Mapping[str, int], lanes: int) -> SaleDefinition:
        now_ms = int(time.time() * 1000)
        sale_id = ids.new_uuid7()
        return SaleDefinition(
            sale_id, "perf", 1, 1, LaneSaleState.RUNNING, now_ms - 1000, now_ms + 86_400_000, 600_000, "EUR",
            Topology(lanes=max(lanes, Topology().lanes)).lanes_of_sale(sale_id, count=lanes),
            tuple(SaleItem(sku, 1999, 0) for sku in stock),
        )  # fmt: skip

    def cpu_us(self) -> dict[str, float]:
        """CPU time so far of the edge with its workers, and of Redis."""
        assert self.server.process is not None
        return {"edge": cpu_us(tree(self.edge.pid)), "redis": cpu_us([self.server.process.pid])}


@contextmanager
def edge_on_redis(settings: Mapping[str, str] | None = None, *, keys: Path | None = None) -> Iterator[Stage]:
    """A stage; `settings` are further FLASHSALE_* of the edge. Everything is removed afterwards.

    `keys` is a key ring that several stages share, so that their buyers have the same tokens; by default it has its
    own.
    """
    with sigterm_as_interrupt(), tempfile.TemporaryDirectory(prefix="flashsale-perf-", dir=DISK) as name:
        folder = Path(name)
        server = RedisServer(folder / "redis", maxmemory="8gb")
        edge = None
        try:
            server.start()
            with redis.Redis(port=server.port) as client:
                stage = Stage(folder, server, client, free_port())
                if keys is None:
                    create_token_keys(stage.keys_file)
                else:
                    shutil.copy(keys, stage.keys_file)
                stage.edge = edge = _start_edge(stage, settings or {})
                yield stage
        finally:
            if edge is not None:
                end(edge)
            server.stop()


def _start_edge(stage: Stage, settings: Mapping[str, str]) -> Popen[bytes]:
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FLASHSALE_")},
        "FLASHSALE_REDIS_URL": stage.server.url,
        "FLASHSALE_EDGE_PORT": str(stage.port),
        "FLASHSALE_TOKEN_KEYS_FILE": str(stage.keys_file),
        "FLASHSALE_LOG_LEVEL": "WARNING",
        "FLASHSALE_STREAM_LENGTH_MAX": "100000000",
        **settings,
    }
    log = stage.folder / "edge.log"
    edge = spawn([sys.executable, "-m", "edge"], env=environ, log=log, cwd=ROOT)
    deadline = time.monotonic() + START_S_MAX
    try:
        while edge.poll() is None and time.monotonic() < deadline:
            if responds(f"{stage.url}/readyz"):
                return edge
            time.sleep(0.05)
    except BaseException:
        end(edge)
        raise
    end(edge)
    raise StageError(f"the edge did not become ready: {log_tail(log)}")
