"""The destinations of outbox rows, by the name in their `destination`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import orjson

from domain.events import HEADERS_MEMBER, EventMalformed, event_headers, event_type
from domain.headers import MalformedHeaders, check_headers
from domain.topology import TOPIC_OF_DESTINATION, TOPIC_PAYMENTS
from runtime.event_log import APPEND_RECORDS_MAX, RECORD_BYTES_MAX, EventLog, EventLogUnavailable, NewRecord
from runtime.queue import Queue, QueueFull, QueueUnavailable


class DeliveryFailed(Exception):
    """The destination did not acknowledge; the caller tries again later. Carries the destination's message."""


class MalformedEvents(ValueError):
    """The row is not an array of events for its destination: it can never be delivered."""


class Event(NamedTuple):
    """An event of an outbox row as its carrier takes it: its key, its body, its headers."""

    key: str
    body: bytes
    headers: Mapping[str, str] = {}


class Destination(Protocol):
    """Takes the events of one partition in order."""

    @property
    def name(self) -> str:
        """As in the outbox rows."""
        ...

    def events_of(self, text: str) -> list[Event]:
        """A row's events. Raises MalformedEvents."""
        ...

    async def deliver(self, partition: int, events: Sequence[Event]) -> None:
        """Return when all events are acknowledged. Raises DeliveryFailed; some may be delivered then."""
        ...


class EventTopic:
    """A destination of events is a topic of the event log, partition by partition. One instance for each database.

    The records that a failed delivery had appended are remembered and not appended again with the next try: otherwise
    each try would append its first steps once more, as long as a later step fails.
    """

    def __init__(self, name: str, event_log: EventLog) -> None:
        """`name` is the destination's; `event_log` stays the caller's to close."""
        self.name = name
        self._topic = TOPIC_OF_DESTINATION[name]
        self._event_log = event_log
        self._appended: dict[int, list[Event]] = {}  # by partition; the first events of a page at most

    def events_of(self, text: str) -> list[Event]:
        """Each event as a CloudEvent in binary mode: attributes in headers, `data` in the body."""
        events = []
        for key, document, headers in _documents(text):
            try:
                attributes = event_headers(document)
            except EventMalformed as error:
                raise MalformedEvents(str(error)) from error
            event = Event(key, orjson.dumps(document["data"]), {**headers, **attributes})
            if (size := NewRecord(*event).size_bytes) > RECORD_BYTES_MAX:
                raise MalformedEvents(f"an event of {size} bytes; a record has at most {RECORD_BYTES_MAX}")
            events.append(event)
        return events

    async def deliver(self, partition: int, events: Sequence[Event]) -> None:
        """Append, in as many steps as the log's bound asks for, one after the other."""
        before = self._appended.pop(partition, [])
        done = len(before) if list(events[: len(before)]) == before else 0
        try:
            while done < len(events):
                topic = self._topic_of(events[done])
                step: list[NewRecord] = []
                for event in events[done : done + APPEND_RECORDS_MAX]:
                    if self._topic_of(event) != topic:
                        break
                    step.append(NewRecord(event.key, event.body, event.headers))
                await self._event_log.append(topic, partition, step)
                done += len(step)
        except EventLogUnavailable as error:
            self._appended[partition] = list(events[:done])
            raise DeliveryFailed(str(error)) from error

    def _topic_of(self, event: Event) -> str:
        """Rows of earlier releases have events of payments among those of orders."""
        return TOPIC_PAYMENTS if event_type(event.headers).startswith("payment.") else self._topic


class QueueMessages:
    """Events of a destination that go to one work queue, such as notices. One instance for each database.

    The messages that a failed delivery had published are remembered and not published again with the next try: with
    room for a few at a time only, each try would publish the same few, and never those behind them.
    """

    def __init__(self, name: str, queue: Queue, to: str) -> None:
        """`name` is the destination's, `to` the queue's; `queue` stays the caller's to close."""
        self.name = name
        self._queue = queue
        self._to = to
        self._published: dict[int, set[str]] = {}  # by partition; ids of a page at most

    def events_of(self, text: str) -> list[Event]:
        """Each event as a message; the member `headers` leaves it, because headers are the carrier's."""
        return [Event(key, orjson.dumps(document), headers) for key, document, headers in _documents(text)]

    async def deliver(self, partition: int, events: Sequence[Event]) -> None:
        """Publish one after the other; those before a failure are in the queue."""
        before = self._published.pop(partition, set())
        published: set[str] = set()
        try:
            for event in events:
                message_id = str(orjson.loads(event.body).get("id", ""))
                if not message_id or message_id not in before:
                    await self._queue.publish(self._to, event.body, message_id=message_id, headers=event.headers)
                published.add(message_id)
        except (QueueFull, QueueUnavailable) as error:
            self._published[partition] = published
            raise DeliveryFailed(str(error)) from error


def _documents(text: str) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """Key, event without its headers, and headers of a row's events. Raises MalformedEvents."""
    try:
        events: Any = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise MalformedEvents(str(error)) from error
    if not isinstance(events, list):
        raise MalformedEvents("not an array")
    for place, event in enumerate(events):
        key = event.get("key") if isinstance(event, dict) else None
        if not isinstance(key, str):
            raise MalformedEvents(f"event {place} has no key")
        try:
            headers = check_headers(event.pop(HEADERS_MEMBER, {}))
        except MalformedHeaders:
            headers = {}  # an event is complete without its headers
        yield key, event, headers
