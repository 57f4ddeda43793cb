"""The dispatcher's metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

_GROUP = ["database", "destination"]

LAG_ROWS = Gauge("flashsale_dispatcher_lag_rows", "Outbox rows waiting, counted up to 10,000.", _GROUP)
LAG_SECONDS = Gauge("flashsale_dispatcher_lag_seconds", "Age of the oldest outbox row.", _GROUP)
LEASE_HELD = Gauge("flashsale_dispatcher_lease_held", "1 while this process dispatches the database.", ["database"])
DISPATCHED = Counter("flashsale_dispatcher_dispatched_events", "Events acknowledged by their destination.", _GROUP)
DELETED = Counter("flashsale_dispatcher_deleted_rows", "Outbox rows deleted after their acknowledgement.", _GROUP)
FAILURES = Counter("flashsale_dispatcher_failures", "Deliveries that were not acknowledged.", _GROUP)
POISON = Counter("flashsale_dispatcher_poison_rows", "Outbox rows put into the dead letters.", _GROUP)
