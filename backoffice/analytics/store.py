"""Reads the figures of one sale, in one transaction, so that a rebuild cannot replace them meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from backoffice.analytics.calculations import RATE_S, StockStep
from domain.figures import COUNTS, SWITCH_LOCK
from runtime.postgres.databases import Database
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "analytics.sql")
SELL_OUTS_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class Progress:
    """All events until `as_of` are in the figures; `lag_records` wait. None: nothing was ever counted."""

    as_of: datetime | None
    lag_records: int


@dataclass(frozen=True, slots=True)
class Row:
    """Counts of a second or minute in one currency, by name (`domain.figures.COUNTS`)."""

    at: datetime
    currency: str
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class SkuUnits:
    """Units of a SKU: reserved, returned, and the net of the last seconds; times of its first and last reservation."""

    sku: str
    reserved: int
    returned: int
    recent: int
    first_at: datetime | None
    last_at: datetime | None


@dataclass(frozen=True, slots=True)
class Figures:
    """What is stored of a sale. `sell_outs` are SKU and time; `pay_times` are step and orders."""

    progress: Progress
    since: datetime
    until: datetime
    rows: Sequence[Row]
    refused: Mapping[datetime, Mapping[str, int]]
    totals: Sequence[tuple[str, Mapping[str, int]]]
    all_refused: Mapping[str, int]
    pay_times: Sequence[tuple[int, int]]
    skus: Sequence[SkuUnits]
    sell_outs: Sequence[tuple[str, datetime]]
    first_at: datetime | None


class FigureStore:
    """The analytics database and the restocks of the catalogue."""

    def __init__(self, analytics: Database, catalogue: Database) -> None:
        """Uses both."""
        self._analytics = analytics
        self._catalogue = catalogue

    async def restocks(self, sale_id: UUID) -> list[tuple[str, datetime, int]]:
        """SKU, time and units of each restock, oldest first."""
        async with self._catalogue.connection() as connection:
            return await (await connection.execute(SQL["read_restocks"], {"sale_id": sale_id})).fetchall()

    async def read(
        self,
        sale_id: UUID,
        *,
        step: timedelta,
        since: datetime | None,
        until: datetime | None,
        points_max: int,
        stock: Sequence[StockStep],
        now: datetime,
    ) -> Figures:
        """The figures of a sale between two times; without them the last `points_max` steps with figures."""
        async with self._analytics.connection() as connection:
            await connection.execute(SQL["enter"], {"lock": SWITCH_LOCK})
            sale = {"sale_id": sale_id}
            as_of, lag, _ = await _one(connection, "read_progress")
            first, last = await _one(connection, "read_extent", **sale)
            all_refused = await _all(connection, "read_all_refusals", **sale)
            extent = (
                min([at for at in (first, *(row[2] for row in all_refused)) if at], default=None),
                last,
                max([row[3] for row in all_refused], default=None),
            )
            since, until = await self._window(connection, sale_id, step, since, until, points_max, extent, now)
            window = {**sale, "since": since, "until": until}
            is_seconds = step < timedelta(minutes=1)
            rows = await _all(connection, "read_seconds" if is_seconds else "read_minutes", **window)
            refused: dict[datetime, dict[str, int]] = {}
            for at, code, orders in await _all(connection, "read_refusals", **window, step=step):
                refused.setdefault(at, {})[code] = orders
            recent = (as_of or now) - timedelta(seconds=RATE_S)
            steps = {
                "skus": [item.sku for item in stock],
                "sinces": [item.since for item in stock],
                "stocks": [item.stock for item in stock],
            }
            return Figures(
                progress=Progress(as_of, lag or 0),
                since=since,
                until=until,
                rows=[Row(at, currency, _counts(counts)) for at, currency, *counts in rows],
                refused=refused,
                totals=[
                    (currency, _counts(counts)) for currency, *counts in await _all(connection, "read_totals", **sale)
                ],
                all_refused={code: orders for code, orders, _, _ in all_refused},
                pay_times=[(place, orders) for place, orders in await _all(connection, "read_pay_times", **sale)],
                skus=[SkuUnits(*row) for row in await _all(connection, "read_skus", **sale, recent=recent)],
                sell_outs=[
                    (sku, at)
                    for sku, at in await _all(connection, "read_sell_outs", **sale, **steps, limit=SELL_OUTS_MAX)
                ],
                first_at=first,
            )

    @staticmethod
    async def _window(
        connection: AsyncConnection[TupleRow],
        sale_id: UUID,
        step: timedelta,
        since: datetime | None,
        until: datetime | None,
        points_max: int,
        extent: tuple[datetime | None, datetime | None, datetime | None],
        now: datetime,
    ) -> tuple[datetime, datetime]:
        """`extent`: the first minute or refused order, the last minute, the last refused order."""
        longest = points_max * step
        first, last, last_refused = extent
        if until is None and since is not None:
            until = since + longest
        if until is None:
            if last is not None and step < timedelta(minutes=1):
                (second,) = await _one(connection, "read_last_second", sale_id=sale_id, since=last)
                last = second or last
            lasts = [at for at in (last, last_refused) if at is not None]
            until = floor(max(lasts), step) + step if lasts else floor(now, step)
        if since is None:
            since = until - longest if first is None else min(max(floor(first, step), until - longest), until)
        return since, until


def floor(at: datetime, step: timedelta) -> datetime:
    """The start of the step that holds the time."""
    return at - (at - datetime(1970, 1, 1, tzinfo=at.tzinfo)) % step


def _counts(values: Sequence[int]) -> dict[str, int]:
    return dict(zip(COUNTS, values, strict=True))


async def _one(connection: AsyncConnection[TupleRow], name: str, **parameters: Any) -> TupleRow:
    row = await (await connection.execute(SQL[name], parameters)).fetchone()
    assert row is not None, "an aggregate has a row"
    return row


async def _all(connection: AsyncConnection[TupleRow], name: str, **parameters: Any) -> list[TupleRow]:
    return await (await connection.execute(SQL[name], parameters)).fetchall()
