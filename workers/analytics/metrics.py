"""The metrics of the analytics worker."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

EVENTS = Counter("flashsale_analytics_events", "Events read from the log, by result.", ["topic", "result"])
LOST = Counter("flashsale_analytics_lost_events", "Events that the log dropped before they were counted.", ["topic"])
LAG_RECORDS = Gauge("flashsale_analytics_lag_records", "Records of the event log that are not counted yet.", ["topic"])
AS_OF = Gauge("flashsale_analytics_as_of_seconds", "All events until this Unix time are counted.", ["topic"])
LEASE_HELD = Gauge("flashsale_analytics_lease_held", "1 while this process counts the events of a topic.", ["topic"])
PAUSES = Counter("flashsale_analytics_pauses", "Waits for a server that was away.", ["what"])
REFUSALS = Counter("flashsale_analytics_refusals", "Refused orders that were added to the figures.")
