"""Compares the events of the log with the shards' rows, record by record (invariant D). Performs no I/O.

`checker` compares which versions have an event. Here: where each event is, and the content that it tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from uuid import UUID

from domain.orders import OrderStatus
from domain.topology import outbox_partition
from faults.evidence import Event, StoredOrder
from faults.money_check import some


def compare_events(
    events: Sequence[Event], rows: Sequence[StoredOrder], statuses: Mapping[tuple[UUID, int], int]
) -> Iterator[str]:
    """Texts of findings. `statuses` are the stored statuses by order and version."""
    by_id = {row.order_id: row for row in rows}
    misplaced, wrong, other = [], [], []
    for event in events:
        if event.key != str(event.user_id) or event.partition != outbox_partition(event.key):
            misplaced.append(event.event_id)
        stored = statuses.get((event.order_id, event.version))
        if stored is not None and OrderStatus(stored).label != event.status:
            wrong.append(f"{event.event_id} says {event.status}, stored {OrderStatus(stored).label}")
        row = by_id.get(event.order_id)
        told = (event.user_id, event.lines, event.total_minor)
        if row is not None and told != (row.user_id, row.lines, row.total_minor):
            other.append(event.event_id)
    if misplaced:
        yield f"{len(misplaced)} events are not in the partition of their user: {some(sorted(misplaced))}"
    if wrong:
        yield f"{len(wrong)} events tell another status than their version has: {some(sorted(wrong))}"
    if other:
        yield f"{len(other)} events tell another user, other lines or another total than the row: {some(sorted(other))}"
