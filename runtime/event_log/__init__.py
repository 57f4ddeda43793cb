"""The event log: the port and its adapters. `open_event_log` picks the adapter by URL scheme."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from domain.topology import TOPICS, TopicSpec
from runtime.event_log.kafka_access import KafkaAccess, KafkaAccessError
from runtime.event_log.port import (
    APPEND_RECORDS_MAX,
    READ_RECORDS_MAX,
    RECORD_BYTES_MAX,
    EventLog,
    EventLogUnavailable,
    Lag,
    LogRecord,
    NewRecord,
    Overtaken,
    Reader,
    RecordTooLarge,
    UnknownTopic,
    WentBack,
)
from runtime.event_log.redis_streams import RedisStreamsEventLog
from runtime.process.errors import OperatorError
from runtime.process.settings import Settings

__all__ = [
    "APPEND_RECORDS_MAX",
    "READ_RECORDS_MAX",
    "RECORD_BYTES_MAX",
    "EventLog",
    "EventLogUnavailable",
    "KafkaAccess",
    "KafkaAccessError",
    "Lag",
    "LogRecord",
    "NewRecord",
    "Overtaken",
    "Reader",
    "RecordTooLarge",
    "UnknownEventLogScheme",
    "UnknownTopic",
    "WentBack",
    "event_log_of",
    "open_event_log",
]


class UnknownEventLogScheme(OperatorError):
    """The event log's URL has a scheme without an adapter."""


def event_log_of(settings: Settings) -> EventLog:
    """The event log of a process's settings, with all topics. Raises as `open_event_log`."""
    return open_event_log(
        settings.event_log_url, TOPICS, records_max=settings.event_log_records_max, kafka=KafkaAccess.of(settings)
    )


def open_event_log(
    url: str,
    specs: Iterable[TopicSpec],
    *,
    records_max: int = 20_000,
    connections_max: int = 32,
    kafka: KafkaAccess = KafkaAccess(),  # noqa: B008 - it is frozen
) -> EventLog:
    """The event log at `url` with the topics of `specs` (`domain.topology.TOPICS`); connects when it is first used.

    `records_max` bounds a partition whose spec has no bound of its own, where the carrier retains by number (Redis
    Streams). `kafka` is the login and encryption of kafka://. Raises UnknownEventLogScheme, KafkaAccessError.
    """
    scheme = urlsplit(url).scheme
    if scheme in ("redis", "rediss"):
        return RedisStreamsEventLog(url, specs, records_max=records_max, connections_max=connections_max)
    if scheme == "kafka":
        # Here: processes that read Redis Streams do not load the client.
        from runtime.event_log.kafka import KafkaEventLog

        return KafkaEventLog(url, specs, kafka)
    raise UnknownEventLogScheme(
        f"FLASHSALE_EVENT_LOG_URL: no adapter for {scheme or 'a URL without a scheme'}; use redis:// or kafka://"
    )
