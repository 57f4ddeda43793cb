"""Charts of a sale on the staff page: the summary, axes, values under pointer and keys, earlier times, the table."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import pytest
import redis
from playwright.sync_api import expect

from devstack.servers import RedisServer
from domain.orders import OrderStatus
from tests.backoffice.test_analytics import count, refuse
from tests.fixtures.fix_backoffice import BackofficeProcess
from tests.fixtures.fix_browser import Visit
from tests.fixtures.fix_databases import Databases
from tests.pages.test_staff import log_in, staff_of
from tests.workers.counting import Story


@pytest.fixture
def own(
    tmp_path: Path, redis_server: RedisServer, redis_client: redis.Redis, databases: Databases
) -> Iterator[BackofficeProcess]:
    """A backoffice of the test's own, with an administrator account."""
    assert redis_client
    process = BackofficeProcess(tmp_path, redis_server.url, databases)
    process.start()
    yield process
    process.kill()


def test_figures_of_a_sale(visit: Visit, own: BackofficeProcess, databases: Databases) -> None:
    page = visit(own.url).page
    log_in(page)
    sale = staff_of(own, page).open_sale(name="Kettles", stock=10)
    start_ms = int(time.time() * 1000) // 60_000 * 60_000 - 600_000
    story = Story(random.Random(1), start_ms, sale_id=UUID(sale["id"]))
    sku = sale["items"][0]["sku"]
    orders = [story.order(start_ms + 600 * place, [(sku, 1)]) for place in range(8)]
    story.becomes(orders[0], OrderStatus.PAID, start_ms + 9_000)
    with ThreadPoolExecutor(1) as beside:  # the browser's client has a loop in this thread
        beside.submit(count, databases.analytics_dsn, story.events, as_of_ms=start_ms + 10_000, lag=3).result()
        beside.submit(refuse, databases.analytics_dsn, story.sale_id, {"sold_out": 5}, start_ms + 1_000).result()
    page.locator("#sales-refresh").click()
    page.locator(f'#sales [data-sale="{sale["id"]}"]').get_by_role("button", name="Figures").click()
    line = page.locator("#figures-line")
    expect(line).to_contain_text("sold 80 % in 4.2 s")
    expect(line).to_contain_text("projected sell-out at")
    expect(line).to_contain_text("1 of 8 orders paid (12.5 %)")
    expect(page.locator("#figures-as-of")).to_contain_text("3 wait")
    names = page.locator("#figures-charts figure").evaluate_all("all => all.map(one => one.dataset.chart)")
    assert names == ["Reserved orders", "Paid orders", "Revenue in EUR", "Refused orders"]
    chart = page.locator('#figures-charts [data-chart="Reserved orders"]')
    assert chart.locator("text").all_text_contents()[:3] == ["0", "1", "2"]
    assert len(chart.locator("text").all()) == 8
    value = chart.locator("output")
    box = chart.locator("svg").bounding_box()
    assert box is not None
    chart.locator("svg").hover(position={"x": box["width"] - 12, "y": 20})  # waits until it stands still
    expect(value).to_contain_text(": 0")
    page.mouse.move(0, 0)
    expect(value).to_have_text("")
    chart.locator("svg").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(value).to_contain_text(": 2")
    page.get_by_text("Values as a table").click()
    rows = page.locator("#figures-rows tr")
    assert sum(int(text) for text in rows.locator('[data-label="Reserved"]').all_inner_texts()) == 8
    page.get_by_role("button", name="Earlier").click()
    expect(page.locator("#figures-none")).to_be_visible()
    page.get_by_role("button", name="Later").click()
    expect(rows.first).to_be_visible()
    page.get_by_label("Points").select_option("minute")
    expect(rows).to_have_count(1)
