"""Invariant G: every unit of money is accounted for. What came for an order is a paid order's, due back, or refunded.

Judges the rows of the shards. The provider's own ledger is compared by `flashsale payments reconcile`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from domain.payments import UNKNOWN_ID
from payments.ledger import Pool
from runtime.postgres.sql import load_sql

FINDINGS_MAX: Final = 20  # of a shard
SLICE_ROWS: Final = 5000
LATE: Final = timedelta(minutes=5)  # until then a payment and its order may be on their way
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


class Accounting:
    """Looks at the payments of all shards. Raises psycopg errors as they come."""

    def __init__(self, pools: Sequence[Pool], *, late: timedelta = LATE) -> None:
        """`pools` are in shard order and opened elsewhere."""
        self._pools = pools
        self._late = late

    async def findings(self, shard: int, *, since: datetime = EVER) -> list[str]:
        """Contradictions among the payments and orders of a shard that changed since then, at most `FINDINGS_MAX`.

        Reads in slices of a bounded number of rows, each in a transaction of its own.
        """
        found: list[str] = []
        async for row in self._walk(shard, "slice_of_payments", "contradictions", since):
            event_id, order_id, reason = row
            found.append(f"payment {event_id} for order {order_id}: {reason}")
        async for (order_id,) in self._walk(shard, "slice_of_orders", "unpaid", since):
            found.append(f"order {order_id} is paid, and no payment pays it")
        return found[:FINDINGS_MAX]

    async def _walk(self, shard: int, slices: str, look: str, since: datetime) -> AsyncIterator[TupleRow]:
        """Rows of `look` from `since` on, slice by slice."""
        while True:
            async with self._pools[shard].connection() as connection:
                ends = await _rows(connection, slices, {"since": since, "rows": SLICE_ROWS})
                until = ends[0][0] if ends else FOREVER
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
            if not ends:
                return
            since = until

    async def sums(self, shard: int) -> list[Sums]:
        """All money of a shard, by currency."""
        async with self._pools[shard].connection() as connection:
            return [Sums(*row) for row in await _rows(connection, "sums", {})]


async def _rows(connection: AsyncConnection[TupleRow], name: str, values: dict[str, object]) -> list[TupleRow]:
    return await (await connection.execute(_SQL[name], values)).fetchall()
