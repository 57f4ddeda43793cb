"""The relay's metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

LAG_ENTRIES = Gauge("flashsale_relay_lag_entries", "Entries in the lane's stream, not trimmed yet.", ["lane"])
LAG_SECONDS = Gauge("flashsale_relay_lag_seconds", "Age of the oldest entry in the lane's stream.", ["lane"])
LEASE_HELD = Gauge("flashsale_relay_lease_held", "1 while this process owns the lane.", ["lane"])
PUBLISHED = Counter("flashsale_relay_published_entries", "Entries published and confirmed.", ["lane", "shard"])
MESSAGES = Counter("flashsale_relay_published_messages", "Messages published and confirmed.", ["lane", "shard"])
TRIMMED = Counter("flashsale_relay_trimmed_entries", "Entries trimmed off the stream.", ["lane"])
POISON = Counter("flashsale_relay_poison_entries", "Malformed entries put into the dead letters.", ["lane"])
LEFT_OUT = Counter(
    "flashsale_relay_left_out", "Times that a shard did not take its messages and others went on.", ["lane", "shard"]
)
FAILURES = Counter("flashsale_relay_publish_failures", "Publishes that were not confirmed.", ["shard", "kind"])
