"""Metrics of all workers of one edge. Each sample has the label `worker`; Prometheus sums them.

Workers count in C memory and write a snapshot to a shared folder every second; the worker that answers /metrics reads
the snapshots of the others. A restarted worker keeps the number of its predecessor, so its counters restart as
Prometheus expects.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from domain.problems import Problem
from edge.problems import Answer, refuse
from edge.routing import Request

Snapshot = Mapping[str, Any]
_FOLDER_PREFIX = "flashsale-edge-"
FRESH_S = 1.0  # computed once in this time, for any number of scrapes
SCRAPES_MAX = 64  # answers of one computation; then `overloaded` until the next one


@contextmanager
def snapshots() -> Iterator[Path]:
    """A folder for the snapshots of one edge, removed at the end. Also removes folders that killed edges left."""
    parent = Path(tempfile.gettempdir())
    for lock in parent.glob(f"{_FOLDER_PREFIX}*/lock"):
        with contextlib.suppress(OSError), lock.open("ab") as file:  # of another user, in use, or just removed
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_FOLDER_PREFIX) as name:
        folder = Path(name)
        with (folder / "lock.new").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            (folder / "lock.new").rename(folder / "lock")  # locked before another edge can see it
            yield folder


class SnapshotFolder:
    """One file per worker. A file is replaced as a whole, so a reader never sees half a snapshot."""

    def __init__(self, folder: Path, worker: int) -> None:
        self._folder = folder
        self._worker = worker

    def publish(self, snapshot: Snapshot) -> None:
        """Replace this worker's snapshot. Raises OSError when the folder is gone or full."""
        staging = self._folder / f"worker-{self._worker}.new"
        staging.write_bytes(orjson.dumps(snapshot))
        os.replace(staging, self._folder / f"worker-{self._worker}.json")

    def read_others(self) -> dict[int, Snapshot]:
        """Snapshots of the other workers by number. Skips unreadable ones."""
        others: dict[int, Snapshot] = {}
        for path in self._folder.glob("worker-*.json"):
            worker = int(path.stem.removeprefix("worker-"))
            if worker == self._worker:
                continue
            try:
                others[worker] = orjson.loads(path.read_bytes())
            except (OSError, orjson.JSONDecodeError):
                continue  # its process is stopping
        return others


def worker_is_started(folder: Path, worker: int, *, pid: int | None) -> bool:
    """Whether the worker's process has written its first snapshot."""
    try:
        snapshot = orjson.loads((folder / f"worker-{worker}.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return False
    return bool(snapshot["pid"] == pid)


class Metrics:
    """Handler of /metrics. Computes the text once in `FRESH_S`, from a new snapshot of this worker."""

    def __init__(
        self,
        folder: SnapshotFolder,
        worker: int,
        snapshot: Callable[[], Snapshot],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._worker = worker
        self._snapshot = snapshot
        self._now_s = now_s
        self._text = b""
        self._computed_at = -FRESH_S
        self._scrapes = 0

    def publish(self) -> None:
        """Write a snapshot for the other workers."""
        self._folder.publish(self._snapshot())

    async def get(self, request: Request) -> Answer:  # noqa: ARG002 - a handler's signature
        """Prometheus text format, at most `FRESH_S` old."""
        now_s = self._now_s()
        if now_s - self._computed_at >= FRESH_S:
            self._text = self._compute()
            self._computed_at = now_s
            self._scrapes = 0
        elif self._scrapes >= SCRAPES_MAX:
            return refuse(Problem.OVERLOADED)
        self._scrapes += 1
        return 200, [("content-type", CONTENT_TYPE_PLAIN_0_0_4)], self._text

    def _compute(self) -> bytes:
        snapshots = {self._worker: self._snapshot(), **self._folder.read_others()}
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_EdgeCollector(snapshots))
        return generate_latest(registry)


# Name, help text, members of `batcher` in a snapshot to sum.
_BATCHER_COUNTERS = (
    ("batches", "Script calls sent to Redis", ("batches",)),
    (
        "batch_orders",
        "Orders in script calls; divided by the number of batches, this gives the mean batch size",
        ("orders_sent", "lookups_sent"),
    ),
    ("resubmitted_orders", "Orders sent again after a lost connection", ("resubmitted",)),
    ("redis_reconnects", "Connections of the order path to Redis after the first one", ("reconnects",)),
)
# Of the direct door: name, help text, member of `direct` in a snapshot.
_DIRECT_COUNTERS = (
    ("accepted", "Connections of the direct door", "accepted"),
    ("refused", "Connections that the direct door closed at once, because all places were taken", "refused"),
    ("displaced", "Idle connections that the direct door closed for others", "displaced"),
    ("unread", "Connections that the direct door closed because the peer did not read its answers", "unread"),
)
_GAUGES = (
    ("queue_length", "Orders that wait for a batch", "queued"),
    ("batches_in_flight", "Script calls without a reply yet", "in_flight"),
    ("requests_in_flight", "Requests in progress, orders excluded", "requests_in_flight"),
    ("ready", "1 when /readyz of the worker answers 200", "ready"),
    ("redis_memory_percent", "Memory use of the reservation Redis", "memory_percent"),
    ("known_sales", "Sales that the worker has loaded", "known_sales"),
    ("ended_sessions", "Users whose sessions ended within the lifetime of a token", "ended_sessions"),
)


class _EdgeCollector(Collector):
    def __init__(self, snapshots: Mapping[int, Snapshot]) -> None:
        self._snapshots = {str(worker): snapshot for worker, snapshot in sorted(snapshots.items())}

    def collect(self) -> Iterable[Metric]:
        yield from self._orders()
        yield from self._batches()
        yield from self._direct()
        for name, text, member in _GAUGES:
            gauge = GaugeMetricFamily(f"flashsale_edge_{name}", text, labels=["worker"])
            for worker, snapshot in self._snapshots.items():
                gauge.add_metric([worker], float(snapshot[member]))
            yield gauge
        requests = CounterMetricFamily(
            "flashsale_edge_requests", "Answers to requests, orders excluded", labels=["worker", "route", "status"]
        )
        durability = GaugeMetricFamily(
            "flashsale_edge_durability_info", "Durability of accepted orders", labels=["worker", "level"]
        )
        # A key rotation waits until every worker shows the new key here. Shows names of keys, never keys.
        keys = GaugeMetricFamily(
            "flashsale_edge_token_key_info", "Keys that verify buyers' tokens", labels=["worker", "kid", "active"]
        )
        outside = GaugeMetricFamily(
            "flashsale_edge_outside_keys", "Known keys of an outside issuer", labels=["worker", "issuer"]
        )
        restarts = CounterMetricFamily(
            "flashsale_task_restarts", "Background tasks that ended and were started again", labels=["worker", "task"]
        )
        payments = CounterMetricFamily(
            "flashsale_edge_payment_events", "Events of the payment provider by result", labels=["worker", "result"]
        )
        lost_lines = CounterMetricFamily(
            "flashsale_log_writes_failed", "Writes of log lines that failed, such as on a full disk", labels=["worker"]
        )
        for worker, snapshot in self._snapshots.items():
            lost_lines.add_metric([worker], snapshot["log_writes_failed"])
            for task, count in snapshot["task_restarts"].items():
                restarts.add_metric([worker, task], count)
            durability.add_metric([worker, snapshot["durability"]], 1)
            for issuer, count in snapshot["outside_keys"].items():
                outside.add_metric([worker, issuer], count)
            for kid, active in snapshot["token_keys"].items():
                keys.add_metric([worker, kid, str(int(active))], 1)
            for result, count in snapshot["payment_events"].items():
                payments.add_metric([worker, result], count)
            for route, status, count in snapshot["requests"]:
                requests.add_metric([worker, route, str(status)], count)
        yield requests
        yield durability
        yield keys
        yield outside
        yield restarts
        yield payments
        yield lost_lines

    def _direct(self) -> Iterable[Metric]:
        doors = {worker: each["direct"] for worker, each in self._snapshots.items() if each["direct"] is not None}
        if not doors:
            return
        connections = GaugeMetricFamily(
            "flashsale_edge_direct_connections", "Open connections of the direct door", labels=["worker"]
        )
        malformed = CounterMetricFamily(
            "flashsale_edge_direct_malformed", "Requests at the direct door that are not HTTP/1.1", labels=["worker"]
        )
        for worker, door in doors.items():
            connections.add_metric([worker], door["connections"])
            malformed.add_metric([worker], door["malformed"])
        yield connections
        yield malformed
        for name, text, member in _DIRECT_COUNTERS:
            counter = CounterMetricFamily(f"flashsale_edge_direct_connections_{name}", text, labels=["worker"])
            for worker, door in doors.items():
                counter.add_metric([worker], door[member])
            yield counter

    def _orders(self) -> Iterable[Metric]:
        orders = CounterMetricFamily("flashsale_edge_orders", "Order requests by outcome", labels=["worker", "outcome"])
        latency = HistogramMetricFamily(
            "flashsale_edge_order_duration_seconds", "Time from the headers to the answer", labels=["worker"]
        )
        for worker, snapshot in self._snapshots.items():
            for outcome, count in snapshot["orders"]["verdicts"].items():
                orders.add_metric([worker, outcome], count)
            histogram = snapshot["orders"]["latency"]
            buckets = [(repr(float(bound)), count) for bound, count in histogram["buckets"]]
            buckets.append(("+Inf", histogram["count"]))
            latency.add_metric([worker], buckets, sum_value=histogram["sum_s"])
        yield orders
        yield latency

    def _batches(self) -> Iterable[Metric]:
        for name, text, members in _BATCHER_COUNTERS:
            counter = CounterMetricFamily(f"flashsale_edge_{name}", text, labels=["worker"])
            for worker, snapshot in self._snapshots.items():
                counter.add_metric([worker], sum(snapshot["batcher"][member] for member in members))
            yield counter
