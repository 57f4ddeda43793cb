"""Figures of a sale as JSON and CSV: query and response models. Performs no I/O."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Literal
from uuid import UUID

from pydantic import ConfigDict, Field

from backoffice.analytics.calculations import (
    RATE_S,
    StockStep,
    final_stock,
    pay_percentiles,
    percent,
    projected_sell_out,
)
from backoffice.analytics.store import Figures, SkuUnits, floor
from backoffice.web.fields import Model, Moment, Resource, Time, format_time
from backoffice.web.messages import invalid
from domain.figures import COUNTS

POINTS_MAX: Final = 3_600
COLUMNS: Final = ("at", "currency", *COUNTS, "refused")


class Resolution(StrEnum):
    """The length of a point."""

    SECOND = "second"
    MINUTE = "minute"

    @property
    def step(self) -> timedelta:
        """As a duration."""
        return timedelta(seconds=1) if self is Resolution.SECOND else timedelta(minutes=1)


class FiguresQuery(Model):
    """Query of the figures of a sale. The range is half open; its ends are rounded to whole points."""

    since: Moment | None = Field(None, alias="from", description="Begin at this time; the first point contains it")
    until: Moment | None = Field(None, alias="to", description="End before this time")
    resolution: Resolution = Field(Resolution.SECOND, description="Length of a point")
    format: Literal["json", "csv"] | None = Field(None, description="Takes precedence over `Accept`")
    model_config = ConfigDict(extra="ignore", frozen=True)

    def window(self) -> tuple[datetime | None, datetime | None]:
        """Both ends as whole points. Refused for a range that is empty or too long."""
        step = self.resolution.step
        try:
            since = None if self.since is None else floor(self.since, step)
            until = None if self.until is None else floor(self.until + step - timedelta(milliseconds=1), step)
            if until is None and since is not None:
                assert since + POINTS_MAX * step
            if since is None and until is not None:
                assert until - POINTS_MAX * step
        except OverflowError:
            raise invalid("/from", "the range is beyond the calendar") from None
        if since is not None and until is not None:
            if until <= since:
                raise invalid("/to", "must be later than `from`")
            if (until - since) / step > POINTS_MAX:
                raise invalid(
                    "/to",
                    f"a range has at most {POINTS_MAX} points; choose a shorter range or `resolution=minute`",
                )
        return since, until


class Lag(Resource):
    """How far the figures are behind: records of the event log that wait, and the age of `as_of`."""

    records: int
    seconds: float | None


class Point(Resource):
    """Counts of one second or minute. Amounts are by currency, in minor units. Points without events are left out."""

    at: Time
    orders: int
    units: int
    orders_minor: dict[str, int]
    paid: int
    paid_units: int
    revenue_minor: dict[str, int]
    cancelled: int
    expired: int
    rejected: int
    refunds: int
    refunded_minor: dict[str, int]
    refused: dict[str, int]


class SkuFigures(Resource):
    """A SKU: `held` units are reserved or paid and did not come back; null if figures of its start are deleted."""

    sku: str
    stock: int
    held: int | None
    sold_percent: float | None
    units_per_s: float
    projected_sell_out_at: Time | None


class SellOut(Resource):
    """A moment at which the held units of a SKU reached its stock."""

    sku: str
    at: Time


class Funnel(Resource):
    """From reserved to paid. Percentiles of the time to pay in seconds: the upper bound of a step of a quarter."""

    reserved: int
    paid: int
    cancelled: int
    expired: int
    rejected: int
    open: int
    paid_percent: float | None
    seconds_to_pay_p50: float | None
    seconds_to_pay_p90: float | None
    seconds_to_pay_p99: float | None


class Summary(Resource):
    """The whole sale. `sold_in_s` is the time from the first reservation to the last."""

    stock: int
    held: int | None
    sold_percent: float | None
    sold_in_s: float | None
    units_per_s: float
    projected_sell_out_at: Time | None
    items: list[SkuFigures]
    sell_outs: list[SellOut] | None
    funnel: Funnel
    revenue_minor: dict[str, int]
    refunded_minor: dict[str, int]
    refunds: int
    refused: dict[str, int]


class SaleFigures(Resource):
    """The figures of a sale. `as_of`: all events of the log until then are counted; null if nothing was counted yet."""

    sale_id: UUID
    resolution: Resolution
    since: Time = Field(serialization_alias="from")
    until: Time = Field(serialization_alias="to")
    as_of: Time | None
    lag: Lag
    summary: Summary
    points: list[Point]


def figures_document(
    sale_id: UUID, query: FiguresQuery, figures: Figures, stock: list[StockStep], *, now: datetime, kept_since: datetime
) -> SaleFigures:
    """The answer. Figures per second of before `kept_since` are deleted."""
    as_of = figures.progress.as_of
    return SaleFigures(
        sale_id=sale_id,
        resolution=query.resolution,
        since=figures.since,
        until=figures.until,
        as_of=as_of,
        lag=Lag(
            records=figures.progress.lag_records,
            seconds=None if as_of is None else round(max(0.0, (now - as_of).total_seconds()), 1),
        ),
        summary=_summary(figures, stock, as_of=as_of or now, kept_since=kept_since),
        points=list(_points(figures)),
    )


def _points(figures: Figures) -> Iterator[Point]:
    by_time: dict[datetime, dict[str, Mapping[str, int]]] = {at: {} for at in figures.refused}
    for row in figures.rows:
        by_time.setdefault(row.at, {})[row.currency] = row.counts
    for at, by_currency in sorted(by_time.items()):
        values: dict[str, Any] = {
            name: {currency: counts[name] for currency, counts in by_currency.items()}
            if name.endswith("_minor")
            else sum(counts[name] for counts in by_currency.values())
            for name in COUNTS
        }
        yield Point(at=at, refused=dict(figures.refused.get(at, {})), **values)


def _summary(figures: Figures, stock: list[StockStep], *, as_of: datetime, kept_since: datetime) -> Summary:
    final = final_stock(stock)
    units = {sku.sku: sku for sku in figures.skus}
    is_whole = figures.first_at is None or figures.first_at >= kept_since
    items = [_sku(sku, all_, units.get(sku), as_of=as_of, is_whole=is_whole) for sku, all_ in final.items()]
    totals = {name: sum(counts[name] for _, counts in figures.totals) for name in COUNTS}
    held = sum(item.held or 0 for item in items) if is_whole else None
    all_stock, rate = sum(final.values()), sum(item.units_per_s for item in items)
    firsts = [sku.first_at for sku in figures.skus if sku.first_at]
    lasts = [sku.last_at for sku in figures.skus if sku.last_at]
    return Summary(
        stock=all_stock,
        held=held,
        sold_percent=None if held is None else percent(held, all_stock),
        sold_in_s=round((max(lasts) - min(firsts)).total_seconds(), 3) if is_whole and firsts else None,
        units_per_s=round(rate, 1),
        projected_sell_out_at=None
        if held is None
        else projected_sell_out(left=all_stock - held, units_per_s=rate, as_of=as_of),
        items=items,
        sell_outs=[SellOut(sku=sku, at=at) for sku, at in figures.sell_outs] if is_whole else None,
        funnel=_funnel(totals, figures),
        revenue_minor={currency: counts["revenue_minor"] for currency, counts in figures.totals},
        refunded_minor={currency: counts["refunded_minor"] for currency, counts in figures.totals},
        refunds=totals["refunds"],
        refused=dict(figures.all_refused),
    )


def _sku(sku: str, stock: int, units: SkuUnits | None, *, as_of: datetime, is_whole: bool) -> SkuFigures:
    held = (units.reserved - units.returned if units else 0) if is_whole else None
    rate = max(0, units.recent) / RATE_S if units else 0.0
    return SkuFigures(
        sku=sku,
        stock=stock,
        held=held,
        sold_percent=None if held is None else percent(held, stock),
        units_per_s=round(rate, 1),
        projected_sell_out_at=None
        if held is None
        else projected_sell_out(left=stock - held, units_per_s=rate, as_of=as_of),
    )


def _funnel(totals: Mapping[str, int], figures: Figures) -> Funnel:
    ended = sum(totals[name] for name in ("paid", "cancelled", "expired", "rejected"))
    times = pay_percentiles(figures.pay_times)
    return Funnel(
        reserved=totals["orders"],
        paid=totals["paid"],
        cancelled=totals["cancelled"],
        expired=totals["expired"],
        rejected=totals["rejected"],
        open=max(0, totals["orders"] - ended),
        paid_percent=percent(totals["paid"], totals["orders"]),
        seconds_to_pay_p50=times.get(50),
        seconds_to_pay_p90=times.get(90),
        seconds_to_pay_p99=times.get(99),
    )


def csv_document(figures: Figures) -> bytes:
    """A line for each point and currency (RFC 4180). Refused orders are in the first line of their point."""
    refused = {at: sum(codes.values()) for at, codes in figures.refused.items()}
    lines = []
    for row in figures.rows:
        cells = [row.counts[name] for name in COUNTS]
        lines.append((row.at, [format_time(row.at), row.currency, *cells, refused.pop(row.at, 0)]))
    for at, orders in refused.items():
        lines.append((at, [format_time(at), "", *([0] * len(COUNTS)), orders]))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows(cells for _, cells in sorted(lines, key=lambda line: line[0]))
    return text.getvalue().encode()
