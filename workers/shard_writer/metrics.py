"""Counters of the shard writer, per shard."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from workers.shard_writer.plan import StoreResult

STORED = Counter("flashsale_writer_orders_stored", "Order versions that took effect in the shard.", ["shard"])
REPEATED = Counter("flashsale_writer_orders_repeated", "Orders delivered again that changed nothing.", ["shard"])
EVENTS = Counter("flashsale_writer_events", "Order events put into the outbox.", ["shard"])
WAITED = Counter("flashsale_writer_orders_waited", "Times an order found no grant and went to wait.", ["shard"])
POISON_RETRIED = Counter(
    "flashsale_writer_poison_retried", "Attempts of poison orders that will be tried again.", ["shard"]
)
DEAD_LETTERED = Counter("flashsale_writer_dead_lettered", "Messages given up to the dead letters.", ["shard"])
FORWARDED = Counter("flashsale_writer_forwarded", "Messages sent on to the shards that buckets moved to.", ["shard"])
PAUSES = Counter("flashsale_writer_pauses", "Pauses of consumption, by what was waited for.", ["shard", "waits_for"])
TTL_MISSED = Counter("flashsale_writer_ttl_missed", "Final orders whose value in Redis got no TTL.", ["shard"])
GRANTS_SWEPT = Counter("flashsale_writer_grants_swept", "Grants that the sweep corrected.", ["shard"])
GUARD_DAMAGED = Gauge(
    "flashsale_writer_guard_damaged",
    "SKUs with a grant and a quota that do not fit each other, in the last sweep.",
    ["shard"],
)
BATCH_ORDERS = Histogram(
    "flashsale_writer_batch_orders",
    "Orders in one transaction.",
    ["shard"],
    buckets=(1, 10, 50, 100, 250, 500, 1000, 2000, 5000, 10_000),
)


def count(shard: int, result: StoreResult) -> None:
    """Count the result of a batch."""
    STORED.labels(shard).inc(result.stored_count)
    REPEATED.labels(shard).inc(result.repeated_count)
    EVENTS.labels(shard).inc(result.event_count)
    WAITED.labels(shard).inc(len(result.waiting))
    BATCH_ORDERS.labels(shard).observe(result.stored_count + result.repeated_count)
