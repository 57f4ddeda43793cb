"""Figures of a sale over HTTP, from figures that the worker's store wrote."""

from __future__ import annotations

import asyncio
import csv
import random
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import orjson
import psycopg
import pytest
from pydantic import SecretStr

from backoffice.analytics.calculations import (
    ALWAYS,
    StockStep,
    final_stock,
    pay_percentiles,
    percent,
    projected_sell_out,
    stock_steps,
)
from domain.events import event_headers
from domain.figures import PAY_TIME_BOUNDS_MS
from domain.orders import OrderStatus
from runtime.postgres.pool import postgres_pool
from tests.fixtures.fix_backoffice import Staff
from tests.fixtures.fix_databases import Databases
from tests.workers.counting import Story, totals
from workers.analytics.changes import change_of
from workers.analytics.store import DAY_MS, Batch, Figures, Progress, RefusalCounts

AT = datetime(2026, 11, 28, 10, 0, tzinfo=UTC)


def count(dsn: str, events: Iterable[dict[str, Any]], *, as_of_ms: int, lag: int = 0) -> None:
    """Count events as the worker does, in one batch."""
    changes = [change_of(event_headers(event), _value(event)) for event in events]

    async def apply() -> None:
        async with postgres_pool(SecretStr(dsn)) as pool:
            figures = Figures(pool, carrier="redis")
            await figures.make_days({changed.at_ms // DAY_MS for changed in changes})
            known = await figures.positions("orders.v1", 16)
            await figures.apply("orders.v1", Batch(changes, known, {0: known[0] + 1}), Progress(as_of_ms, lag))

    asyncio.run(apply())


def refuse(dsn: str, sale_id: UUID, counts: dict[str, int], at_ms: int) -> None:
    async def add() -> None:
        async with postgres_pool(SecretStr(dsn)) as pool:
            await RefusalCounts(pool).add({(sale_id, code): orders for code, orders in counts.items()}, at_ms)

    asyncio.run(add())


def _value(event: dict[str, Any]) -> bytes:
    return orjson.dumps(event["data"])


def iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@pytest.fixture
def story(staff: Staff, databases: Databases) -> Story:
    """An open sale of 10 units, of which 8 went within 4.2 s, and its figures."""
    sale = staff.open_sale(stock=10)
    start_ms = int(time.time() * 1000) // 60_000 * 60_000 - 600_000
    story = Story(random.Random(1), start_ms, sale_id=UUID(sale["id"]))
    sku = sale["items"][0]["sku"]
    orders = [story.order(start_ms + 600 * place, [(sku, 1)]) for place in range(7)]
    orders.append(story.order(start_ms + 4_200, [(sku, 1)]))
    paid = story.becomes(orders[0], OrderStatus.PAID, start_ms + 70_000)
    story.refund(paid, 500, start_ms + 80_000)
    count(databases.analytics_dsn, story.events, as_of_ms=start_ms + 5_000, lag=7)
    refuse(databases.analytics_dsn, story.sale_id, {"sold_out": 5, "rate_limited": 1}, start_ms + 1_000)
    return story


def path(story: Story, **query: str) -> str:
    return f"/v1/analytics/sales/{story.sale_id}?" + "&".join(f"{name}={value}" for name, value in query.items())


def test_points_add_up_to_the_events(staff: Staff, story: Story) -> None:
    answer = staff.http.get(path(story))
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    document = answer.json()
    expected = totals(story.events)
    points = document["points"]
    for name in ("orders", "units", "paid", "paid_units", "refunds"):
        assert sum(point[name] for point in points) == expected[name]
    assert sum(point["revenue_minor"].get("EUR", 0) for point in points) == expected["revenue_minor"]
    assert [point["refused"] for point in points if point["refused"]] == [{"rate_limited": 1, "sold_out": 5}]
    assert points[0]["at"] == iso(story.start_ms)
    assert (document["from"], document["to"]) == (iso(story.start_ms), iso(story.start_ms + 81_000))
    minutes = staff.http.get(path(story, resolution="minute")).json()
    assert [(point["at"], point["orders"], point["paid"]) for point in minutes["points"]] == [
        (iso(story.start_ms), 8, 0),
        (iso(story.start_ms + 60_000), 0, 1),
    ]


def test_summary_says_how_much_was_sold_in_which_time(staff: Staff, story: Story) -> None:
    document = staff.http.get(path(story)).json()
    summary = document["summary"]
    assert (summary["stock"], summary["held"], summary["sold_percent"], summary["sold_in_s"]) == (10, 8, 80.0, 4.2)
    assert summary["units_per_s"] == 0.8
    assert summary["projected_sell_out_at"] == iso(story.start_ms + 5_000 + 2_500)
    assert summary["sell_outs"] == []
    funnel = summary["funnel"]
    assert (funnel["reserved"], funnel["paid"], funnel["open"], funnel["paid_percent"]) == (8, 1, 7, 12.5)
    assert funnel["seconds_to_pay_p50"] == next(bound for bound in PAY_TIME_BOUNDS_MS if bound >= 70_000) / 1000
    assert summary["refused"] == {"rate_limited": 1, "sold_out": 5}
    assert document["as_of"] == iso(story.start_ms + 5_000)
    assert document["lag"]["records"] == 7
    assert document["lag"]["seconds"] > 500


def test_sell_out_moments_follow_returns_and_restocks(staff: Staff, story: Story, databases: Databases) -> None:
    sku = story.entries[0].lines[0].sku
    dsn, at = databases.analytics_dsn, story.start_ms + 100_000
    first = [story.order(at + place * 250, [(sku, 1)]) for place in range(2)]
    story.becomes(first[0], OrderStatus.CANCELLED, at + 20_000)
    story.order(at + 30_123, [(sku, 1)])
    count(dsn, story.events[-4:], as_of_ms=at + 31_000)
    sell_outs = staff.http.get(path(story)).json()["summary"]["sell_outs"]
    assert sell_outs == [{"sku": sku, "at": iso(at + 250)}, {"sku": sku, "at": iso(at + 30_123)}]
    restock = staff.http.post(
        f"/v1/sales/{story.sale_id}/restock", json={"sku": sku, "quantity": 2}, headers={"Idempotency-Key": "more"}
    )
    assert restock.status_code == 200
    with psycopg.connect(databases.catalogue_dsn) as connection:
        connection.execute("UPDATE restocks SET applied_at = %s", [iso(at + 20_500)])
    summary = staff.http.get(path(story)).json()["summary"]
    assert summary["sell_outs"] == [{"sku": sku, "at": iso(at + 250)}]  # 2 more units came before the last order
    assert (summary["stock"], summary["held"]) == (12, 10)


def test_csv_by_accept_or_by_parameter(staff: Staff, story: Story) -> None:
    by_accept = staff.http.get(path(story), headers={"Accept": "text/csv"})
    by_parameter = staff.http.get(path(story, format="csv"))
    assert by_accept.status_code == 200
    assert by_accept.headers["content-type"] == "text/csv; charset=utf-8"
    assert (
        f"as-of-{datetime.fromtimestamp(story.start_ms / 1000 + 5, UTC):%Y%m%dT%H%M%SZ}"
        in by_accept.headers["content-disposition"]
    )
    assert by_accept.content == by_parameter.content
    rows = list(csv.DictReader(by_accept.text.splitlines()))
    assert sum(int(row["orders"]) for row in rows) == 8
    assert sum(int(row["revenue_minor"]) for row in rows) == totals(story.events)["revenue_minor"]
    assert sum(int(row["refused"]) for row in rows) == 6
    assert staff.http.get(path(story, format="json"), headers={"Accept": "text/csv"}).json()["points"]


def test_a_range_selects_whole_points_and_is_bounded(staff: Staff, story: Story) -> None:
    ends = {"from": iso(story.start_ms + 1_500), "to": iso(story.start_ms + 3_100)}
    document = staff.http.get(path(story, **ends)).json()
    assert (document["from"], document["to"]) == (iso(story.start_ms + 1_000), iso(story.start_ms + 4_000))
    assert sum(point["orders"] for point in document["points"]) == 5
    for query, pointer in (
        ({"from": "2026-01-01T00:00:00Z", "to": "2026-01-01T01:00:01Z"}, "/to"),
        ({"from": "2026-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "/to"),
        ({"from": "yesterday"}, "/from"),
        ({"from": "9999-12-31T23:59:00Z"}, "/from"),
        ({"resolution": "hour"}, "/resolution"),
    ):
        answer = staff.http.get(path(story, **query))
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
        assert answer.json()["errors"][0]["pointer"] == pointer, answer.text
    assert staff.http.get(path(story, **{"from": "2026-01-01T00:00:00Z"})).json()["points"] == []


def test_refusals_after_the_last_order_are_in_the_points(staff: Staff, story: Story, databases: Databases) -> None:
    """After the sell-out, orders are only refused."""
    at = story.start_ms + 400_000
    refuse(databases.analytics_dsn, story.sale_id, {"sold_out": 905, "rate_limited": 1}, at)
    for resolution, at_ms, end_ms in (("second", at, at + 1_000), ("minute", at // 60_000 * 60_000, at + 20_000)):
        document = staff.http.get(path(story, resolution=resolution)).json()
        last = document["points"][-1]
        assert (last["at"], last["orders"], last["refused"]) == (iso(at_ms), 0, {"sold_out": 900})
        assert document["to"] == iso(end_ms)
        assert sum(sum(point["refused"].values()) for point in document["points"]) == 906


def test_refusals_before_the_first_order_are_in_the_points(staff: Staff, databases: Databases) -> None:
    sale_id, at = UUID(staff.open_sale(stock=10)["id"]), int(time.time()) // 60 * 60_000 - 7_200_000
    refuse(databases.analytics_dsn, sale_id, {"rate_limited": 3}, at)
    document = staff.http.get(f"/v1/analytics/sales/{sale_id}").json()
    assert [(point["at"], point["refused"]) for point in document["points"]] == [(iso(at), {"rate_limited": 3})]
    assert document["summary"]["held"] == 0


def test_ends_of_ranges_that_are_no_times_are_refused(staff: Staff, story: Story) -> None:
    for text in ("0001-01-01T00:00:00%2B05:00", "9999-12-31T23:59:59-05:00", "1e308", "2026-02-30T00:00:00Z", "NaN",
                 "2026-01-01", "2026-01-01T00:00:00", "-1", "", "9" * 400):  # fmt: skip
        for name in ("from", "to"):
            answer = staff.http.get(path(story, **{name: text}))
            assert answer.status_code == 422, (name, text, answer.status_code, answer.text)
            assert answer.json()["errors"][0]["pointer"] in ("/from", "/to")
    for text in ("0001-01-01T00:00:00Z", "9999-12-31T00:00:00Z", "2026-01-01T00:00:00-23:59"):
        assert staff.http.get(path(story, **{"from": text})).json()["points"] is not None
    far = staff.http.get(path(story, to="9999-12-31T00:00:00Z", resolution="minute"))
    assert far.status_code == 200
    zoned = staff.http.get(path(story, **{"from": "2026-01-01T02:00:00%2B02:00"})).json()
    assert zoned["from"] == "2026-01-01T00:00:00.000Z"


def test_a_sale_without_figures_and_no_sale(staff: Staff) -> None:
    draft = staff.draft()
    document = staff.http.get(f"/v1/analytics/sales/{draft['id']}").json()
    assert (document["points"], document["as_of"], document["lag"]) == ([], None, {"records": 0, "seconds": None})
    assert document["summary"]["sold_percent"] == 0.0
    for sale_id in (uuid4(), "nonsense"):
        assert staff.http.get(f"/v1/analytics/sales/{sale_id}").json()["code"] == "sale_not_found"


def test_calculations() -> None:
    steps = stock_steps({"A": 5, "B": 1}, [("A", AT, 3), ("X", AT, 9)])
    assert steps == [StockStep("A", ALWAYS, 5), StockStep("B", ALWAYS, 1), StockStep("A", AT, 8)]
    assert final_stock(steps) == {"A": 8, "B": 1}
    assert (percent(999_999, 1_000_000), percent(1, 1), percent(0, 0)) == (99.9, 100.0, None)
    assert projected_sell_out(left=10, units_per_s=4, as_of=AT) == AT + timedelta(seconds=2.5)
    assert projected_sell_out(left=10, units_per_s=0, as_of=AT) is None
    assert projected_sell_out(left=0, units_per_s=4, as_of=AT) is None
    assert projected_sell_out(left=10**9, units_per_s=0.1, as_of=AT) is None
    assert pay_percentiles([]) == {}
    assert pay_percentiles([(0, 50), (3, 49), (len(PAY_TIME_BOUNDS_MS), 1)]) == {
        50: 0.25, 90: PAY_TIME_BOUNDS_MS[3] / 1000, 99: PAY_TIME_BOUNDS_MS[3] / 1000,
    }  # fmt: skip
