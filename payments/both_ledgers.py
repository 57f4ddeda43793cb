"""Reads both ledgers for a comparison: our rows in the shards, and the provider's entries, page by page and bounded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from domain.payments import RefundState
from payments.comparing import (
    GRACE,
    REFUND_OVERDUE,
    Comparison,
    PaymentRow,
    RefundRow,
    Rows,
    compare,
    missing,
    unexplained,
)
from payments.ledger import Pool
from payments.providers.port import PaymentProvider, ProviderEntry
from runtime.postgres.sql import load_sql

PAGE_MAX: Final = 2000  # rows
BOTH_MAX: Final = 1_000_000  # rows and entries in memory, about half a gigabyte
# An entry is older than its row: by a moment, or by days when its webhook had to be repeated. So the second time is
# needed only when a row has no entry in the first.
OLDER: Final = (timedelta(hours=1), timedelta(days=4))

_SQL = load_sql("payments", "comparing.sql")
_FIRST_ID: Final = UUID(int=0)
Progress = Callable[[int, int], object]  # rows and entries that are read so far


class TooMuch(Exception):
    """More rows and entries than one comparison holds: it needs a later `since`."""


class BothLedgers:
    """Compares a provider's ledger with the rows of all shards."""

    def __init__(self, pools: Sequence[Pool], provider: PaymentProvider) -> None:
        """`pools` are in shard order and opened elsewhere."""
        self._pools = pools
        self._provider = provider

    async def compare(
        self,
        since: datetime,
        *,
        grace: timedelta = GRACE,
        overdue: timedelta = REFUND_OVERDUE,
        both_max: int = BOTH_MAX,
        progress: Progress = lambda _rows, _entries: None,
    ) -> Comparison:
        """The verdict from `since` on. Raises TooMuch, ProviderAway, ProviderRefused, and psycopg's errors."""
        rows = Rows()
        for pool in self._pools:
            await self._read_shard(pool, since, rows, both_max, progress)
        entries: list[ProviderEntry] = []
        for older in OLDER:
            entries = await self._read_entries(since, older, rows, both_max, progress)
            if not missing(rows, entries):
                break
        await self._explain(rows, entries, since)
        progress(len(rows), len(entries))
        return compare(rows, entries, since=since, now=datetime.now(UTC), grace=grace, overdue=overdue)

    async def _read_entries(
        self, since: datetime, older: timedelta, rows: Rows, both_max: int, progress: Progress
    ) -> list[ProviderEntry]:
        """The provider's entries, the older ones of our refunds included."""
        done = (refund.created_at for refund in rows.refunds.values() if refund.state is RefundState.DONE)
        entries: list[ProviderEntry] = []
        async for entry in self._provider.entries(min(since, min(done, default=since)) - older):
            entries.append(entry)
            if len(entries) % PAGE_MAX == 0:
                progress(len(rows), len(entries))
            if len(rows) + len(entries) > both_max:
                raise TooMuch(f"more than {both_max} payments and refunds")
        return entries

    async def _read_shard(self, pool: Pool, since: datetime, rows: Rows, both_max: int, progress: Progress) -> None:
        """The rows of one shard; each page is a transaction of its own."""
        beginning = datetime(1970, 1, 1, tzinfo=UTC)
        plan: tuple[tuple[str, datetime, Any], ...] = (
            ("payments_since", since, ""),
            ("refunds_done_since", since, _FIRST_ID),
            ("refunds_open", beginning, _FIRST_ID),
        )
        for name, at, after in plan:
            full = True
            while full:
                page = await self._rows(pool, name, {"at": at, "after": after, "limit": PAGE_MAX})
                for row in page:
                    _keep(rows, row, judged=True)
                full = len(page) == PAGE_MAX
                if full:
                    at, after = page[-1][-1], page[-1][0]
                progress(len(rows), 0)
                if len(rows) > both_max:
                    raise TooMuch(f"more than {both_max} payments and refunds")

    async def _explain(self, rows: Rows, entries: Sequence[ProviderEntry], since: datetime) -> None:
        """Read the rows of entries that have none yet: they are older, or came after the rows were read."""
        payments, refunds = unexplained(rows, entries, since=since)
        for name, ids in (("payments_by_id", sorted(payments)), ("refunds_by_id", sorted(refunds))):
            for start in range(0, len(ids), PAGE_MAX):
                for pool in self._pools:  # an entry may name another order than its row
                    for row in await self._rows(pool, name, {"ids": ids[start : start + PAGE_MAX]}):
                        _keep(rows, row, judged=False)

    async def _rows(self, pool: Pool, name: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        async with pool.connection() as connection:
            cursor = await connection.execute(_SQL[name], values | {"provider": self._provider.name})
            return await cursor.fetchall()


def _keep(rows: Rows, row: tuple[Any, ...], *, judged: bool) -> None:
    if isinstance(row[0], str):
        rows.payments[row[0]] = PaymentRow(*row)
        if judged:
            rows.judged_payments.add(row[0])
    else:
        refund_id, order_id, amount_minor, currency, state, created_at, _ = row
        rows.refunds[refund_id] = RefundRow(
            refund_id, order_id, amount_minor, currency, RefundState(state), created_at
        )  # fmt: skip
        if judged:
            rows.judged_refunds.add(row[0])
