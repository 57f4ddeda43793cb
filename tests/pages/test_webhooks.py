"""Webhooks on the staff page, with the worker and a real receiver: created, tested, replayed, disabled, deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from playwright.sync_api import expect

from devstack.servers import RedisServer
from tests.fixtures.fix_backoffice import BackofficeProcess
from tests.fixtures.fix_browser import Visit
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_receiver import WEBHOOK_KEY, Receiver
from tests.pages.test_staff import answer, log_in
from tests.workers.worker_process import until, worker_process

LOOPBACK = "127.0.0.0/8"


@pytest.fixture
def own(
    tmp_path: Path, redis_server: RedisServer, redis_client: redis.Redis, databases: Databases
) -> Iterator[BackofficeProcess]:
    """A backoffice and a webhook worker that may reach the receiver of the test."""
    assert redis_client
    process = BackofficeProcess(tmp_path, redis_server.url, databases)
    process.environ = {"FLASHSALE_WEBHOOK_ADDRESSES_ALLOWED": LOOPBACK}
    process.start()
    settings = {
        "REDIS_URL": redis_server.url,
        "QUEUE_URL": redis_server.url,
        "EVENT_LOG_URL": redis_server.url,
        "CATALOGUE_DSN": databases.catalogue_dsn,
        "WEBHOOK_KEY": WEBHOOK_KEY,
        "WEBHOOK_ADDRESSES_ALLOWED": LOOPBACK,
    }
    with worker_process("workers.webhooks", settings):
        yield process
    process.kill()


def test_a_webhook_from_creation_to_deletion(visit: Visit, own: BackofficeProcess, receiver: Receiver) -> None:
    inbox = receiver.inbox()
    page = visit(own.url).page
    log_in(page)
    expect(page.locator("#webhooks-none")).to_be_visible()
    page.get_by_label("URL").fill("https://ann:pw@shop.example/")
    page.get_by_label("Event types").fill("order.*, sale.ended")
    page.get_by_role("button", name="Create a webhook").click()
    expect(page.locator("#message")).to_contain_text("must not contain a user name")
    page.get_by_label("URL").fill(inbox.url)
    page.get_by_role("button", name="Create a webhook").click()
    secret = page.locator("#webhook-secret")
    expect(secret).to_contain_text("whsec_")
    inbox.secrets.append(secret.inner_text())
    answer(page, "Close")
    row = page.locator("#webhooks tr")
    expect(row).to_contain_text("order.*, sale.ended")
    row.get_by_role("button", name="Test").click()
    delivery = page.locator("#deliveries tr")
    expect(delivery).to_contain_text("webhook.ping")

    def is_shown() -> bool:
        page.get_by_role("button", name="Refresh deliveries").click()
        page.wait_for_timeout(100)
        return "delivered (200)" in delivery.inner_text()

    def delivered(times: int) -> None:
        until(lambda: len(inbox.messages) >= times)
        until(is_shown)

    delivered(1)
    delivery.get_by_role("button", name="Replay").click()
    delivered(2)
    assert len(set(inbox.ids)) == 1
    delivery.get_by_role("button", name="Show").click()
    expect(page.locator("#details-content")).to_contain_text("200 ok")
    answer(page, "Close")
    row.get_by_role("button", name="New secret").click()
    answer(page, "New secret")
    expect(secret).to_contain_text("whsec_")
    assert secret.inner_text() not in inbox.secrets
    answer(page, "Close")
    row.get_by_role("button", name="Disable").click()
    expect(row).to_contain_text("disabled: by staff")
    row.get_by_role("button", name="Enable").click()
    expect(row).to_contain_text("enabled")
    row.get_by_role("button", name="Delete").click()
    answer(page, "Delete")
    expect(page.locator("#webhooks-none")).to_be_visible()
    expect(page.locator("#deliveries-part")).to_be_hidden()
