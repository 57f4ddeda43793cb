"""What caches count. Performs no I/O."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

PROCESS, REDIS = "process", "redis"


class CacheMetrics:
    """Metrics of all caches of a process; `cache` is a cache's name, `tier` is `process` or `redis`.

    Each request is a hit or a miss of the process tier, and each miss of that tier a hit or a miss of Redis's. So the hit
    rate is the sum of both tiers' hits over hits and misses of the process tier. Who waited for another's load has missed.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        """All at zero."""
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
            "Keys that the cache Redis has evicted for want of memory since it started, of any cache.",
            registry=registry,
        )
        self.redis_failures = Counter(
            "flashsale_cache_redis_failures",
            "Calls to the cache Redis that failed or came too late.",
            registry=registry,
        )
        self.redis_away = Gauge(
            "flashsale_cache_redis_away", "1 while the breaker keeps reads from the cache Redis.", registry=registry
        )
        self.following = Gauge(
            "flashsale_cache_following", "1 while messages about changes reach this process.", registry=registry
        )
        self.owed = Gauge(
            "flashsale_cache_invalidations_owed",
            "Changes of which the cache Redis could not be told yet.",
            registry=registry,
        )
        self.lost = Counter(
            "flashsale_cache_invalidations_lost",
            "Changes of which the cache Redis will not be told: too many were owed. Their entries end by their time.",
            registry=registry,
        )


class OfOneCache:
    """The metrics of one cache; looks its labels up once."""

    def __init__(self, metrics: CacheMetrics, cache: str, entries: Callable[[], int]) -> None:
        """`entries` is asked at each scrape."""
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
        """An entry left the process tier."""
        self._evictions[reason].inc()
