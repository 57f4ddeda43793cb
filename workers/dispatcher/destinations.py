"""Where outbox rows may go, by the name in their `destination`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from domain.topology import DESTINATION_NOTICES, DESTINATION_ORDER_EVENTS, EMAIL_QUEUE, TOPIC_ORDERS
from runtime.event_log import APPEND_RECORDS_MAX, EventLog, EventLogUnavailable
from runtime.queue import Queue, QueueFull, QueueUnavailable


class DeliveryFailed(Exception):
    """The destination did not acknowledge; the caller tries again later. Carries the destination's own words."""


class MalformedEvents(ValueError):
    """The row is not an array of events with a key each: it can never be delivered."""


class Destination(Protocol):
    """Takes the events of one partition in order."""

    @property
    def name(self) -> str:
        """As in the outbox rows."""
        ...

    async def deliver(self, partition: int, events: Sequence[tuple[str, bytes]]) -> None:
        """Return when all `(key, event as JSON)` are acknowledged. Raises DeliveryFailed; some may be there then."""
        ...


class OrderEvents:
    """Order events go to the event log's topic of orders, partition by partition."""

    name = DESTINATION_ORDER_EVENTS

    def __init__(self, event_log: EventLog) -> None:
        """`event_log` stays the caller's to close."""
        self._event_log = event_log

    async def deliver(self, partition: int, events: Sequence[tuple[str, bytes]]) -> None:
        """Append, in as many steps as the log's bound asks for, one after the other."""
        try:
            for start in range(0, len(events), APPEND_RECORDS_MAX):
                await self._event_log.append(TOPIC_ORDERS, partition, events[start : start + APPEND_RECORDS_MAX])
        except EventLogUnavailable as error:
            raise DeliveryFailed(str(error)) from error


class Notices:
    """Notices go to the queues of who sends them: all of them by e-mail at present. One instance for each database.

    What a delivery that failed had got through is remembered, and not published again with the next try: where there is
    only room for a few at a time, it would be the same few each time, and never those behind them.
    """

    name = DESTINATION_NOTICES

    def __init__(self, queue: Queue) -> None:
        """`queue` stays the caller's to close."""
        self._queue = queue
        self._published: dict[int, set[str]] = {}  # by partition; ids of a page at most

    async def deliver(self, partition: int, events: Sequence[tuple[str, bytes]]) -> None:
        """Publish one after the other; those before a failure are there then."""
        before = self._published.pop(partition, set())
        published: set[str] = set()
        try:
            for _, event in events:
                notice_id = str(orjson.loads(event).get("id", ""))
                if not notice_id or notice_id not in before:
                    await self._queue.publish(EMAIL_QUEUE, event, message_id=notice_id)
                published.add(notice_id)
        except (QueueFull, QueueUnavailable) as error:
            self._published[partition] = published
            raise DeliveryFailed(str(error)) from error


def events_of(text: str) -> list[tuple[str, bytes]]:
    """`(key, event as JSON)` of a row's events. Raises MalformedEvents."""
    try:
        events: Any = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise MalformedEvents(str(error)) from error
    if not isinstance(events, list):
        raise MalformedEvents("not an array")
    keyed = []
    for place, event in enumerate(events):
        key = event.get("key") if isinstance(event, dict) else None
        if not isinstance(key, str):
            raise MalformedEvents(f"event {place} has no key")
        keyed.append((key, orjson.dumps(event)))
    return keyed
