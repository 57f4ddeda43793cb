"""Lag of each replica that this process may read, as a metric. Measured by `Database.watch`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from runtime.postgres.databases import Database


class ReplicaMetrics(Collector):
    """`database` is `catalogue`, `shard_0` and so on. Without replicas there are no samples."""

    def __init__(self, databases: Iterable[Database], registry: CollectorRegistry) -> None:
        """Registers itself."""
        self._databases = tuple(databases)
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The lags of now."""
        lag = GaugeMetricFamily(
            "flashsale_replica_lag_seconds",
            "Upper bound of a replica's lag; +Inf while it is not known, because the replica or its primary is away.",
            labels=("database",),
        )
        readable = GaugeMetricFamily(
            "flashsale_replica_readable", "1 while reads may go to the replica.", labels=("database",)
        )
        for database in self._databases:
            if (replica := database.replica) is not None:
                lag_s = replica.lag_s
                lag.add_metric((database.name,), math.inf if lag_s is None else lag_s)
                readable.add_metric((database.name,), float(replica.may_be_read))
        yield lag
        yield readable
