"""Figures of sales over HTTP, for staff: handler and route table."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from backoffice.analytics.calculations import stock_steps
from backoffice.analytics.documents import POINTS_MAX, FiguresQuery, SaleFigures, csv_document, figures_document
from backoffice.analytics.store import FigureStore, floor
from backoffice.sales.service import SaleMissing, SaleService
from backoffice.web.messages import STAFF, Answer, Call, Refused
from backoffice.web.routing import Route
from domain.problems import Problem

CSV = "text/csv; charset=utf-8"


def _now() -> datetime:
    return datetime.now(UTC)


class AnalyticsRoutes:
    """The handler."""

    def __init__(
        self, store: FigureStore | None, sales: SaleService, *, days: int, now: Callable[[], datetime] = _now
    ) -> None:
        """`store` is None without an analytics database. Figures per second are kept for `days`, today included."""
        self._store = store
        self._sales = sales
        self._days = days
        self._now = now

    async def sale(self, call: Call, query: FiguresQuery) -> Answer:
        """The figures of one sale, as JSON or CSV."""
        sale_id = call.path_id("sale_id", Problem.SALE_NOT_FOUND)
        since, until = query.window()
        if self._store is None:
            raise Refused(Problem.DEPENDENCY_UNAVAILABLE, "There is no analytics database: set FLASHSALE_ANALYTICS_DSN")
        try:
            sale = await self._sales.get(sale_id)
        except SaleMissing:
            raise Refused(Problem.SALE_NOT_FOUND) from None
        stock = stock_steps({item.sku: item.stock for item in sale.items}, await self._store.restocks(sale_id))
        now = self._now()
        figures = await self._store.read(
            sale_id, step=query.resolution.step, since=since, until=until, points_max=POINTS_MAX, stock=stock, now=now
        )
        if _wants_csv(query, call.headers.get("accept", "")):
            as_of = figures.progress.as_of
            stamp = f"-as-of-{as_of:%Y%m%dT%H%M%SZ}" if as_of else ""
            name = f"sale-{sale_id}-{query.resolution}{stamp}.csv"
            headers = {"content-disposition": f'attachment; filename="{name}"', "vary": "accept"}
            return Answer(body=csv_document(figures), media_type=CSV, headers=headers)
        kept_since = floor(now, timedelta(days=1)) - timedelta(days=self._days - 1)
        document = figures_document(sale_id, query, figures, stock, now=now, kept_since=kept_since)
        return Answer(body=document.model_dump_json(by_alias=True).encode(), headers={"vary": "accept"})


def _wants_csv(query: FiguresQuery, accept: str) -> bool:
    """`format` decides; else the first of both media types that `Accept` names. Without either JSON."""
    if query.format is not None:
        return query.format == "csv"
    named = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return next((name == "text/csv" for name in named if name in ("text/csv", "application/json")), False)


def routes(analytics: AnalyticsRoutes) -> tuple[Route, ...]:
    """The route table of this subject."""
    return (
        Route(
            "GET",
            "/v1/analytics/sales/{sale_id}",
            analytics.sale,
            "Orders, revenue and refusals of a sale per second or minute, its sell-out moments and funnel",
            "analytics",
            roles=STAFF,
            query=FiguresQuery,
            answers=SaleFigures,
            other_media_types=(CSV,),
            problems=(Problem.SALE_NOT_FOUND,),
        ),
    )
