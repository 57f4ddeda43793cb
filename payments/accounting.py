"""Invariant G: every unit of money is accounted for. What came for an order is a paid order's, due back, or refunded.

Judges the rows of the shards. The provider's own ledger is compared by `flashsale payments reconcile`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from domain.payments import UNKNOWN_ID
from payments.ledger import Pool
from runtime.postgres.pool import single_statements
from runtime.postgres.sql import load_sql

FINDINGS_MAX: Final = 20  # of a shard
SLICE_ROWS: Final = 5000
LATE: Final = timedelta(minutes=5)  # until then a payment and its order may be on their way
INSTANT: Final = timedelta(microseconds=1)  # between two times of the database
EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
FOREVER: Final = datetime(9999, 1, 1, tzinfo=UTC)

_SQL = load_sql("payments", "accounting.sql")


@dataclass(frozen=True, slots=True)
class Sums:
    """Money of one currency in minor units; `captured` is the sum of the others."""

    currency: str
    captured: int
    kept: int
    due: int
    refunded: int
    unsettled: int


@dataclass(frozen=True, slots=True)
class Finding:
    """A contradiction. `at`: the time of its row. `late`: it may go by itself, when its shard was away."""

    text: str
    at: datetime
    late: bool


class Accounting:
    """Looks at the payments of all shards. Raises psycopg errors as they come."""

    def __init__(self, pools: Sequence[Pool], *, late: timedelta = LATE) -> None:
        """`pools` are in shard order and opened elsewhere."""
        self._pools = pools
        self._late = late

    async def findings(self, shard: int, *, since: datetime = EVER) -> list[str]:
        """The texts of `look`."""
        return [finding.text for finding in await self.look(shard, since=since)]

    async def look(self, shard: int, *, since: datetime, again: Iterable[datetime] = ()) -> list[Finding]:
        """Contradictions among the payments and orders of a shard that changed since then, at most `FINDINGS_MAX`.

        `again` are times of earlier findings: rows that changed exactly then are looked at as well, and first. Reads
        in slices of a bounded number of rows.
        """
        spans = [(at, at + INSTANT) for at in sorted(set(again)) if at < since]
        found: list[Finding] = []
        for start, end in [*spans, (since, FOREVER)]:
            async for row in self._walk(shard, "slice_of_payments", "contradictions", start, end):
                event_id, order_id, reason, at, late = row
                found.append(Finding(f"payment {event_id} for order {order_id}: {reason}", at, bool(late)))
            async for order_id, at in self._walk(shard, "slice_of_orders", "unpaid", start, end):
                found.append(Finding(f"order {order_id} is paid, and no payment pays it", at, late=True))
        return found[:FINDINGS_MAX]

    async def _walk(
        self, shard: int, slices: str, look: str, since: datetime, end: datetime
    ) -> AsyncIterator[TupleRow]:
        """Rows of `look` from `since` to before `end`, slice by slice."""
        while since < end:
            async with single_statements(self._pools[shard]) as connection:
                ends = await _rows(connection, slices, {"since": since, "rows": SLICE_ROWS})
                until = min(ends[0][0], end) if ends else end
                span = {
                    "since": since,
                    "until": until,
                    "late": self._late,
                    "limit": FINDINGS_MAX,
                    "unknown": UNKNOWN_ID,
                }
                rows = await _rows(connection, look, span)
            for row in rows:
                yield row
            since = until

    async def sums(self, shard: int) -> list[Sums]:
        """All money of a shard, by currency."""
        async with self._pools[shard].connection() as connection:
            return [Sums(*row) for row in await _rows(connection, "sums", {})]


async def _rows(connection: AsyncConnection[TupleRow], name: str, values: dict[str, object]) -> list[TupleRow]:
    return await (await connection.execute(_SQL[name], values)).fetchall()
