"""The notification worker's metrics."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

SENT = Counter("flashsale_notices_sent", "Letters that the mail server took.", ["kind"])
DROPPED = Counter("flashsale_notices_dropped", "Notices without a letter, by reason.", ["reason"])
RETRIED = Counter("flashsale_notices_retried", "Letters that were not taken and go out again later.", ["kind"])
DEAD_LETTERED = Counter("flashsale_notices_dead_lettered", "Notices that were given up.")
PAUSES = Counter("flashsale_notices_pauses", "Waits for a server that was away.", ["what"])
AGE_SECONDS = Histogram(
    "flashsale_notices_age_seconds",
    "From the notice to the hand-over of its letter.",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600),
)
PUSHED = Counter("flashsale_pushes_sent", "Pushes that a push service took.", ["kind"])
PUSHES_RETRIED = Counter("flashsale_pushes_retried", "Notices whose pushes go out again later.")
UNSUBSCRIBED = Counter("flashsale_push_subscriptions_deleted", "Subscriptions that have ended.")
PUSH_AGE_SECONDS = Histogram(
    "flashsale_pushes_age_seconds",
    "From the event to the hand-over of its push.",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600),
)
