"""The webhook worker's metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

EVENTS = Counter("flashsale_webhooks_events", "Events read, by result.", ["topic", "result"])
STORED = Counter("flashsale_webhooks_deliveries", "Deliveries stored.")
SKIPPED = Counter("flashsale_webhooks_skipped", "Events skipped because a webhook's backlog was at its bound.")
LOST = Counter("flashsale_webhooks_lost_events", "Events that the log dropped before they were read.", ["topic"])
LAG_RECORDS = Gauge("flashsale_webhooks_lag_records", "Records that wait to be read.", ["topic"])
ATTEMPTS = Counter("flashsale_webhooks_attempts", "Attempts, by result.", ["result"])
ATTEMPT_SECONDS = Histogram(
    "flashsale_webhooks_attempt_seconds",
    "Time of an attempt.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
SENDING = Gauge("flashsale_webhooks_sending", "Attempts under way.")
ENABLED = Gauge("flashsale_webhooks_enabled", "Enabled webhooks.")
DISABLED = Counter("flashsale_webhooks_disabled", "Webhooks that the worker disabled.", ["reason"])
PRUNED = Counter("flashsale_webhooks_pruned", "Deliveries that left the log.")
PAUSES = Counter("flashsale_webhooks_pauses", "Waits for a server that was away.", ["what"])
LEASE_HELD = Gauge("flashsale_webhooks_lease_held", "1 while this process works.")
