"""Metrics of caches. Performs no I/O."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

PROCESS, REDIS = "process", "redis"


class CacheMetrics:
    """Metrics of all caches of a process; `cache` is a cache's name, `tier` is `process` or `redis`.

    Each read is a hit or a miss of the process tier, and each miss of it is a hit or a miss of the Redis tier. So the
    hit rate is the hits of both tiers over the hits and misses of the process tier. A read that waits for the load of
    another one is a miss.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        """All metrics are zero."""
        self.hits = Counter("flashsale_cache_hits", "Reads that a tier answered.", ("cache", "tier"), registry=registry)
        self.misses = Counter(
            "flashsale_cache_misses", "Reads that a tier could not answer.", ("cache", "tier"), registry=registry
        )
        self.loads = Counter("flashsale_cache_loads", "Loads from the database.", ("cache",), registry=registry)
        self.evictions = Counter(
            "flashsale_cache_evictions",
            "Entries that left the process tier: size, expired, changed.",
            ("cache", "tier", "reason"),
            registry=registry,
        )
        self.entries = Gauge("flashsale_cache_entries", "Entries in a tier.", ("cache", "tier"), registry=registry)
        self.redis_evicted = Gauge(
            "flashsale_cache_redis_evicted_keys",
            "Keys that the cache Redis has evicted for lack of memory since its start, of any cache.",
            registry=registry,
        )
        self.redis_failures = Counter(
            "flashsale_cache_redis_failures",
            "Calls to the cache Redis that failed or timed out.",
            registry=registry,
        )
        self.redis_away = Gauge(
            "flashsale_cache_redis_away", "1 while the breaker keeps reads from the cache Redis.", registry=registry
        )
        self.following = Gauge(
            "flashsale_cache_following", "1 while this process receives messages about changes.", registry=registry
        )
        self.owed = Gauge(
            "flashsale_cache_invalidations_owed",
            "Changes that could not be sent to the cache Redis yet.",
            registry=registry,
        )
        self.lost = Counter(
            "flashsale_cache_invalidations_lost",
            "Changes that will not be sent to the cache Redis, because too many were owed. Their entries expire.",
            registry=registry,
        )


class OfOneCache:
    """The metrics of one cache, with their labels looked up once."""

    def __init__(self, metrics: CacheMetrics, cache: str, entries: Callable[[], int]) -> None:
        """`entries` is called at each scrape."""
        self.process_hit = metrics.hits.labels(cache, PROCESS).inc
        self.process_miss = metrics.misses.labels(cache, PROCESS).inc
        self.redis_hit = metrics.hits.labels(cache, REDIS).inc
        self.redis_miss = metrics.misses.labels(cache, REDIS).inc
        self.loaded = metrics.loads.labels(cache).inc
        self._evictions = {
            reason: metrics.evictions.labels(cache, PROCESS, reason) for reason in ("size", "expired", "changed")
        }
        metrics.entries.labels(cache, PROCESS).set_function(entries)

    def evicted(self, reason: str) -> None:
        """Count an entry that left the process tier."""
        self._evictions[reason].inc()
