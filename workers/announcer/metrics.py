"""The announcer's metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

EVENTS = Counter("flashsale_announcer_events", "Events read, by result.", ["channel", "result"])
PUBLISHED = Counter("flashsale_announcer_notices", "Notices put into their queue.", ["channel", "kind"])
LOST = Counter("flashsale_announcer_lost_events", "Events that the log dropped before they were read.", ["channel"])
LAG_RECORDS = Gauge("flashsale_announcer_lag_records", "Records of the event log that wait to be read.", ["channel"])
LEASE_HELD = Gauge("flashsale_announcer_lease_held", "1 while this process announces on the channel.", ["channel"])
PAUSES = Counter("flashsale_announcer_pauses", "Waits for a server that was away or had no room.", ["channel", "what"])
AGE_SECONDS = Histogram(
    "flashsale_announcer_age_seconds",
    "From the event to its notice in the queue.",
    ["channel"],
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600),
)
