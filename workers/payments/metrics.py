"""The payment worker's metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REFUNDED = Counter("flashsale_refunds_done", "Refunds that the provider has made.", ["reason"])
RETRIED = Counter("flashsale_refunds_retried", "Calls for a refund that are repeated later.", ["kind"])
DEAD_LETTERED = Counter("flashsale_refunds_dead_lettered", "Refunds that were given up; the money is still due.")
PAUSES = Counter("flashsale_refunds_pauses", "Waits for a server that was away.", ["what"])
CALL_SECONDS = Histogram(
    "flashsale_refunds_call_seconds",
    "Time of a refund's call to the provider.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
OPEN = Gauge("flashsale_refunds_open", "Refunds that are not done, those refused by the provider included.", ["shard"])
REFUSED = Gauge("flashsale_refunds_refused", "Refunds that the provider refuses for good.", ["shard"])
OLDEST_SECONDS = Gauge("flashsale_refunds_oldest_seconds", "Age of the oldest refund that is not done.", ["shard"])
SWEPT = Counter("flashsale_payments_swept", "Interrupted settlings that were taken up again, by result.", ["result"])
TOLD_AGAIN = Counter("flashsale_refunds_told_again", "Refunds whose messages were lost, and that were told again.")
DIFFERENCES = Gauge(
    "flashsale_payments_differences",
    "Differences between the provider's ledger and the shards, by kind. NaN: not known.",
    ["kind"],
)
COMPARED_AGE_SECONDS = Gauge(
    "flashsale_payments_compared_age_seconds", "Age of the last comparison of the ledgers. NaN: there is none."
)
COMPARISONS = Counter("flashsale_payments_comparisons", "Comparisons of the ledgers, by result.", ["result"])
