"""The event log: the port and its adapters. `open_event_log` picks the adapter by URL scheme."""

from __future__ import annotations

from urllib.parse import urlsplit

from runtime.event_log.port import APPEND_RECORDS_MAX, EventLog, EventLogUnavailable, LogRecord
from runtime.event_log.redis_streams import RedisStreamsEventLog

__all__ = [
    "APPEND_RECORDS_MAX",
    "EventLog",
    "EventLogUnavailable",
    "LogRecord",
    "UnknownEventLogScheme",
    "open_event_log",
]


class UnknownEventLogScheme(ValueError):
    """The event log's URL has a scheme without an adapter."""


def open_event_log(url: str, *, records_max: int = 20_000, connections_max: int = 32) -> EventLog:
    """The event log at `url`; connects when it is first used.

    `records_max` bounds a partition where the carrier has no retention settings of its own. Raises UnknownEventLogScheme.
    """
    scheme = urlsplit(url).scheme
    if scheme in ("redis", "rediss"):
        return RedisStreamsEventLog(url, records_max=records_max, connections_max=connections_max)
    raise UnknownEventLogScheme(
        f"FLASHSALE_EVENT_LOG_URL: no adapter for {scheme or 'a URL without a scheme'}; there is redis://"
    )
