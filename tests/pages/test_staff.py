"""The staff page on a backoffice without workers: actions on sales, dead letters, logins, broken streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import pytest
import redis
from playwright.sync_api import Page, expect
from pydantic import SecretStr

from devstack.servers import RedisServer
from domain import topology
from runtime.dead_letters import NewLetter, open_dead_letters
from runtime.queue import FailureKind
from tests.fixtures.fix_backoffice import ADMIN_EMAIL, ADMIN_PASSWORD, BackofficeProcess, Staff
from tests.fixtures.fix_browser import Visit
from tests.fixtures.fix_databases import Databases


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


def log_in(page: Page) -> None:
    page.get_by_label("E-mail address").fill(ADMIN_EMAIL)
    page.get_by_label("Password").fill(ADMIN_PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Running sales")).to_be_visible()


def staff_of(process: BackofficeProcess, page: Page) -> Staff:
    return Staff(process.url, page.evaluate("JSON.parse(localStorage.getItem('flashsale.staff')).access"))


def answer(page: Page, name: str) -> None:
    page.get_by_role("dialog").get_by_role("button", name=name, exact=True).click()


def test_actions_on_a_sale(visit: Visit, own: BackofficeProcess) -> None:
    page = visit(own.url).page
    log_in(page)
    staff = staff_of(own, page)
    sale = staff.draft(name="Kettles", stock=5)
    page.locator("#sales-refresh").click()
    row = page.locator(f'#sales [data-sale="{sale["id"]}"]')

    def act(name: str, choice: str) -> None:
        row.get_by_role("button", name=name).click()
        answer(page, choice)

    def state(name: str) -> None:
        expect(row.locator(".badge")).to_have_text(name)
        assert staff.http.get(f"/v1/sales/{sale['id']}").json()["state"] == name

    act("Publish", "Cancel")
    state("draft")
    act("Publish", "Publish")
    state("open")
    act("Pause", "Pause")
    state("paused")
    row.get_by_role("button", name="Resume").click()
    state("open")
    row.get_by_role("button", name="Restock").click()
    page.get_by_role("dialog").get_by_label("Units to add").fill("3")
    answer(page, "Add units")
    expect(page.locator("#message")).to_contain_text("Restock")
    (item,) = staff.http.get(f"/v1/sales/{sale['id']}/report").json()["items"]
    assert (item["restocked"], item["available"]) == (3, 8)
    card = page.locator(f'[data-running="{sale["id"]}"]')
    expect(card.locator('[data-count="available"]')).to_have_text("8")
    act("End", "End")
    state("ended")
    expect(row.locator("button[data-act]")).to_have_count(0)


def test_letters_are_previewed(visit: Visit, own: BackofficeProcess) -> None:
    page = visit(own.url).page
    log_in(page)
    expect(page.locator("#sample-subject")).to_have_text("Your order is paid")
    expect(page.locator("#sample-text")).to_contain_text("1,259.98 EUR")
    page.get_by_label("Language").select_option("Deutsch")
    expect(page.locator("#sample-subject")).to_have_text("Ihre Bestellung ist bezahlt")
    page.get_by_label("Letter", exact=True).select_option("order expired")
    expect(page.locator("#sample-text")).to_contain_text("Die Reservierung lief ab")
    expect(page.locator("#sample-push")).to_contain_text("Bestellung verfallen")
    page.get_by_label("Letter", exact=True).select_option("verify email")
    expect(page.locator("#sample-push")).to_have_text("none")
    with page.context.expect_page() as opened:
        page.get_by_role("button", name="Open as HTML").click()
    expect(opened.value.get_by_role("link", name="Adresse bestätigen")).to_be_visible()
    opened.value.close()


def test_a_sale_is_changed(visit: Visit, own: BackofficeProcess) -> None:
    page = visit(own.url).page
    log_in(page)
    staff = staff_of(own, page)
    sale = staff.draft(name="Ketles", starts_at="2098-01-01T10:00:00.123Z")
    page.locator("#sales-refresh").click()
    row = page.locator(f'#sales [data-sale="{sale["id"]}"]')
    dialog = page.get_by_role("dialog")

    def change(**fields: str) -> None:
        row.get_by_role("button", name="Change").click()
        for label, value in fields.items():
            dialog.get_by_label(label).fill(value)

    def now() -> dict[str, Any]:
        found: dict[str, Any] = staff.http.get(f"/v1/sales/{sale['id']}").json()
        return found

    change(Name="")
    answer(page, "Cancel")  # possible with an invalid field
    expect(dialog).to_be_hidden()
    change(Name="Kettles", Hold="60", Lanes="2")
    answer(page, "Change")
    expect(row.get_by_role("rowheader")).to_have_text("Kettles")
    expect(row).to_contain_text("over 2 lanes")
    assert now() == {**sale, "name": "Kettles", "hold_seconds": 60, "lanes": 2}  # the start keeps its milliseconds
    assert staff.act(sale, "publish").json()["state"] == "scheduled"
    page.locator("#sales-refresh").click()
    expect(row.locator(".badge")).to_have_text("scheduled")
    change(Starts="2097-06-01T08:30:00")
    expect(dialog.get_by_label("Hold")).to_have_count(0)
    answer(page, "Change")
    expect(row).to_contain_text("1 Jun 2097")
    assert now()["starts_at"] == "2097-06-01T08:30:00.000Z"
    change(Ends="2097-06-01T08:30:00")
    answer(page, "Change")
    expect(page.locator("#message")).to_contain_text("must be later than starts_at")
    assert now()["ends_at"] == sale["ends_at"]
    # No changes, no request.
    change()
    answer(page, "Change")
    expect(dialog).to_be_hidden()


def test_a_draft_is_deleted(visit: Visit, own: BackofficeProcess) -> None:
    page = visit(own.url).page
    log_in(page)
    staff = staff_of(own, page)
    sale = staff.draft(name="Mistake")
    page.locator("#sales-refresh").click()
    row = page.locator(f'#sales [data-sale="{sale["id"]}"]')
    row.get_by_role("button", name="Delete").click()
    answer(page, "Cancel")
    assert staff.http.get(f"/v1/sales/{sale['id']}").status_code == 200
    row.get_by_role("button", name="Delete").click()
    answer(page, "Delete")
    expect(row).to_have_count(0)
    expect(page.locator("#message")).to_have_text("The draft “Mistake” is deleted")
    assert staff.http.get(f"/v1/sales/{sale['id']}").status_code == 404


def test_a_restock_without_an_answer_is_repeated_with_its_key(visit: Visit, own: BackofficeProcess) -> None:
    page = visit(own.url).page
    log_in(page)
    staff = staff_of(own, page)
    sale = staff.open_sale(stock=5)
    page.locator("#sales-refresh").click()
    keys: list[str] = []

    def lose_the_first_answer(route: Any) -> None:
        keys.append(route.request.headers["idempotency-key"])
        if len(keys) == 1:
            route.fetch()
            return route.abort()
        return route.continue_()

    page.route("**/restock", lose_the_first_answer)
    for _ in range(2):
        page.locator("#sales").get_by_role("button", name="Restock").click()
        page.get_by_role("dialog").get_by_label("Units to add").fill("4")
        answer(page, "Add units")
        expect(page.locator("#message")).to_be_visible()
    expect(page.locator("#message")).to_contain_text("Restock")
    assert len(keys) == 2 and keys[0] == keys[1]
    (item,) = staff.http.get(f"/v1/sales/{sale['id']}/report").json()["items"]
    assert (item["restocked"], item["available"]) == (4, 9)


def test_the_form_explains_errors(visit: Visit, own: BackofficeProcess) -> None:
    page = visit(own.url).page
    log_in(page)
    page.get_by_role("button", name="Create a draft").click()
    expect(page.locator("#create-message")).to_contain_text("Name:")
    expect(page.get_by_label("Name", exact=True)).to_be_focused()
    page.get_by_label("Name", exact=True).fill("Nothing to sell")
    page.get_by_label("SKU").fill("NO-SUCH")
    page.get_by_label("Stock").fill("1")
    page.get_by_label("Price").fill("1")
    page.get_by_role("button", name="Create a draft").click()
    expect(page.locator("#create-message")).to_contain_text("product NO-SUCH does not exist")
    page.get_by_role("button", name="Add an item").click()
    expect(page.locator("#items fieldset")).to_have_count(2)
    page.locator("#items fieldset").nth(1).get_by_role("button", name="Remove").click()
    expect(page.locator("#items fieldset")).to_have_count(1)


def test_dead_letters(visit: Visit, own: BackofficeProcess, redis_client: redis.Redis) -> None:
    hostile = "<b>bold</b>"
    queue = topology.order_queue(1)

    async def prepare() -> None:
        letters = open_dead_letters(SecretStr(own.databases.catalogue_dsn))
        raw = NewLetter(
            queue=topology.POISON_ENTRIES, message_id="1-0", body=b"raw", kind=FailureKind.UNROUTABLE, reason="malformed",
            replayable=False,
        )  # fmt: skip
        await letters.add(raw)
        for body in (b"one", b"two"):
            await letters.add(
                NewLetter(
                    queue=queue, message_id="m", body=body, kind=FailureKind.MALFORMED, reason=hostile, attempts=1
                )
            )
        await letters.close()

    page = visit(own.url).page
    _run_beside(prepare)
    log_in(page)
    rows = page.locator("#letters tr")
    expect(rows).to_have_count(3)
    expect(page.locator("#lags div", has_text="Dead letters").locator("dd")).to_have_text("3")
    expect(page.locator("#letters b")).to_have_count(0)
    first = rows.nth(1)
    expect(first).to_contain_text(hostile)
    first.get_by_role("button", name="Show").click()
    expect(page.locator("#details pre")).to_have_text("one")
    page.locator("#details").get_by_role("button", name="Close").click()
    first.get_by_role("button", name="Replay").click()
    expect(rows).to_have_count(2)
    assert redis_client.xlen(f"queue:{{{queue}}}:stream") == 1
    expect(rows.nth(0).get_by_role("button", name="Replay")).to_have_count(0)  # it was never a queue message
    for left in (1, 0):
        rows.nth(0).get_by_role("button", name="Delete").click()
        answer(page, "Delete")
        expect(rows).to_have_count(left)
    expect(page.get_by_text("No dead letters.")).to_be_visible()
    expect(page.locator("#lags div", has_text="Dead letters").locator("dd")).to_have_text("0")


def _run_beside(prepare: Any) -> None:
    """Run a coroutine in another thread: Playwright keeps an event loop in this one."""
    thread = Thread(target=lambda: asyncio.run(prepare()))
    thread.start()
    thread.join()


def test_logins(visit: Visit, own: BackofficeProcess) -> None:
    visitor = visit(own.url)
    page = visitor.page
    expect(page.get_by_label("E-mail address")).to_be_focused()
    page.get_by_label("E-mail address").fill(ADMIN_EMAIL)
    page.get_by_label("Password").fill("not the password")
    page.keyboard.press("Enter")
    expect(page.locator("#login-message")).to_have_text("The credentials are not valid")
    email = f"buyer-{uuid4().hex[:8]}@example.com"
    body = {"email": email, "password": "a buyer's password", "name": "B"}
    made = page.request.post(f"{own.url}/v1/auth/register", data=body)
    assert made.status == 201
    page.get_by_label("E-mail address").fill(email)
    page.get_by_label("Password").fill("a buyer's password")
    page.keyboard.press("Enter")
    expect(page.locator("#login-message")).to_have_text("This page is for staff only")
    log_in(page)
    page.reload()
    expect(page.get_by_role("heading", name="Running sales")).to_be_visible()  # the login survives a reload
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    assert page.evaluate("localStorage.length") == 0


def test_live_again_after_the_backoffice_was_down(visit: Visit, own: BackofficeProcess) -> None:
    page = visit(own.url).page
    log_in(page)
    expect(page.locator("#live-state")).to_have_text("live")
    assert own.stop() == 0
    expect(page.locator("#live-state")).to_contain_text("not live")
    own.start()
    expect(page.locator("#live-state")).to_have_text("live")


def test_a_token_is_renewed_before_it_expires(visit: Visit, own: BackofficeProcess) -> None:
    page = visit(own.url).page
    log_in(page)
    before = page.evaluate("JSON.parse(localStorage.getItem('flashsale.staff')).refresh")
    page.evaluate(
        """() => localStorage.setItem('flashsale.staff',
          JSON.stringify({...JSON.parse(localStorage.getItem('flashsale.staff')), renewAt: Date.now() - 1}))"""
    )
    page.reload()
    expect(page.locator("#live-state")).to_have_text("live")
    kept = page.evaluate("JSON.parse(localStorage.getItem('flashsale.staff'))")
    assert kept["refresh"] != before and kept["renewAt"] > time.time() * 1000
    assert staff_of(own, page).http.get("/v1/sales").status_code == 200


def test_the_audit_log(visit: Visit, own: BackofficeProcess) -> None:
    page = visit(own.url).page
    log_in(page)
    staff = staff_of(own, page)
    sale = staff.open_sale(name="Kettles")
    page.get_by_label("Action", exact=True).fill("publish")
    page.get_by_role("button", name="Show entries").click()
    expect(page.locator("#audit tr")).to_have_count(1)
    row = page.locator("#audit tr")
    expect(row).to_contain_text("sale.publish")
    expect(row).to_contain_text(sale["id"])
    row.get_by_role("button", name="Show").click()
    expect(page.get_by_role("dialog")).to_contain_text("127.0.0.1")
    answer(page, "Close")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export as CSV").click()
    text = Path(download.value.path()).read_text()
    assert download.value.suggested_filename == "audit.csv"
    assert text.count("sale.publish") == 1 and "product.create" not in text
    page.get_by_label("Object", exact=True).fill("sale:none")
    page.get_by_role("button", name="Show entries").click()
    expect(page.locator("#audit-none")).to_be_visible()
    expect(page.locator("#audit-table")).to_be_hidden()
