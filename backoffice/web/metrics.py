"""Prometheus metrics of this process: requests, background repairs, readiness."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from backoffice.web.admission.proxies import UNTRUSTED
from backoffice.web.messages import Answer, Call
from runtime.process.supervision import TASK_RESTARTS

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]


class Metrics:
    """Metrics in a registry of this application's own."""

    def __init__(self) -> None:
        """All at zero."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.registry.register(TASK_RESTARTS)
        self.registry.register(UNTRUSTED)
        self._requests = Counter(
            "flashsale_backoffice_requests",
            "Answered requests.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "flashsale_backoffice_request_seconds",
            "Time in the handler.",
            ("route",),
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15),
            registry=self.registry,
        )
        self.repaired = Counter(
            "flashsale_backoffice_synchroniser_repairs",
            "Interrupted publishings, changes and restocks that the synchroniser finished.",
            registry=self.registry,
        )
        self.swept = Counter(
            "flashsale_backoffice_sweeper_repairs",
            "Interrupted registrations, changes of address and erasures that the sweeper finished.",
            registry=self.registry,
        )
        self.ready = Gauge("flashsale_backoffice_prepared", "1 when the start-up work is done.", registry=self.registry)

    def observe(self, *, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request; `route` is a path template, so that labels are bounded."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    async def show(self, _: Call) -> Answer:
        """All metrics in the Prometheus text format."""
        return Answer(body=generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
