"""Reads the figures of analytics for one sale, after the worker has counted all events. Judges nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

import psycopg

from domain.topology import TOPIC_ORDERS, TOPIC_PAYMENTS, TOPICS
from ops.stack_file import Stack
from runtime.event_log import EventLog

COUNTED_S_MAX: Final = 30.0  # then the figures are read as they are: a finding, if they are behind
LOOK_S: Final = 0.1
COUNTS: Final = ("orders", "units", "paid", "paid_units", "revenue_minor", "cancelled", "expired", "rejected")
_SUMS: Final = f"SELECT {', '.join(f'coalesce(sum({name}), 0)::bigint' for name in COUNTS)} FROM figures.minutes"  # noqa: S608 - constants
_POSITIONS: Final = "SELECT topic, partition, last_offset FROM figures.positions WHERE carrier = %s"


async def read_figures(stack: Stack, log: EventLog, sale_id: UUID) -> dict[str, int] | None:
    """The sums of a sale by name, without zeros; None for a stack without analytics."""
    if stack.analytics_dsn is None:
        return None
    deadline = time.monotonic() + COUNTED_S_MAX
    ends = await _ends(log)
    while time.monotonic() < deadline and not await _is_counted(stack, ends):  # noqa: ASYNC110
        await asyncio.sleep(LOOK_S)
    async with await psycopg.AsyncConnection.connect(stack.analytics_dsn, connect_timeout=5) as connection:
        row = await (await connection.execute(f"{_SUMS} WHERE sale_id = %s".encode(), (sale_id,))).fetchone()
    assert row is not None
    return {name: count for name, count in zip(COUNTS, row, strict=True) if count}


async def _ends(log: EventLog) -> dict[tuple[str, int], int]:
    ends: dict[tuple[str, int], int] = {}
    for spec in TOPICS:
        if spec.name in (TOPIC_ORDERS, TOPIC_PAYMENTS):
            async with log.reader(None, spec.name, range(spec.partitions)) as reader:
                ends |= {(spec.name, partition): lag.end for partition, lag in (await reader.lag()).items() if lag.end}
    return ends


async def _is_counted(stack: Stack, ends: dict[tuple[str, int], int]) -> bool:
    assert stack.analytics_dsn is not None
    carrier = urlsplit(stack.event_log_url).scheme
    async with await psycopg.AsyncConnection.connect(stack.analytics_dsn, connect_timeout=5) as connection:
        rows = await (await connection.execute(_POSITIONS, (carrier,))).fetchall()
    positions = {(topic, partition): offset for topic, partition, offset in rows}
    return all(positions.get(place, -1) >= end for place, end in ends.items())
