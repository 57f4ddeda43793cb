"""Faults of analytics: the worker killed around its commit, its database away, events that come again.

The checker compares the figures with the shards' rows after each drill (invariant D).
"""

from __future__ import annotations

import asyncio
from typing import Final

from domain.topology import OUTBOX_PARTITIONS, TOPIC_ORDERS, TOPICS
from faults.conditions import NotFired
from faults.postgres_faults import database_away
from faults.proxy import Harm
from faults.scenario import Drill, Fault
from faults.worker_faults import killed_at
from runtime.event_log import NewRecord, open_event_log

WORKER: Final = "analytics-0"
AGAIN_S: Final = 2.0
RECORDS_MAX: Final = 500  # of each partition
_COMMIT: Final = (b"COMMIT",)
_TO_ANALYTICS: Final = b"\0database\0analytics\0"


async def positions_set_back(drill: Drill) -> str:
    """Count the whole topic again: the positions are rows of the database."""
    dsn = drill.stage.stack.analytics_dsn
    assert dsn is not None
    moved = await drill.stage.sql(
        dsn, "UPDATE figures.positions SET last_offset = -1 WHERE last_offset > 0 RETURNING topic"
    )
    if not moved:
        raise NotFired("no position was set back: no event was counted")
    await asyncio.sleep(AGAIN_S)
    return f"{len(moved)} partitions are read again from their oldest record"


async def records_appended_again(drill: Drill) -> str:
    """Append the same records at new offsets, as a dispatcher does after an unknown outcome."""
    log = open_event_log(drill.stage.stack.event_log_url, TOPICS)
    again = 0
    try:
        for partition in range(OUTBOX_PARTITIONS):
            async with log.reader(None, TOPIC_ORDERS, [partition]) as reader:
                records = await reader.next_batch(count_max=RECORDS_MAX, wait_s=0)
            if records:
                copies = [NewRecord(record.key, record.value, record.headers) for record in records]
                await log.append(TOPIC_ORDERS, partition, copies)
                again += len(copies)
    finally:
        await log.close()
    if not again:
        raise NotFired("the topic had no records")
    return f"{again} records were appended again"


def _killed(harm: Harm) -> Fault:
    before = harm is Harm.BEFORE
    return Fault(
        f"analytics-killed-{'before' if before else 'after'}-commit",
        "analytics worker killed with a batch counted and not committed"
        if before
        else "analytics worker killed after a commit, before the answer arrives",
        "rolled back, read again" if before else "the positions in the database say that the batch is counted",
        killed_at(WORKER, _COMMIT, harm, server="postgres", greeting=_TO_ANALYTICS),
    )


FAULTS = [
    _killed(Harm.BEFORE),
    Fault(
        "analytics-topic-replayed", "positions of analytics set back to the oldest record of each partition",
        "each event is known; the figures stay as they are", positions_set_back,
    ),
    _killed(Harm.AFTER),
    Fault(
        "analytics-records-again", "records of the topic of orders appended again at new offsets",
        "each event is known; the figures stay as they are", records_appended_again,
    ),
    Fault(
        "analytics-database-away", "the analytics database refuses connections for a while",
        "orders go on; the worker waits, then counts all events", database_away("analytics"),
    ),
]  # fmt: skip
