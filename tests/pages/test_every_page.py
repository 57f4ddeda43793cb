"""Properties of all pages on a whole stack: keyboard, phones, names as plain text, the API page."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.fixtures.fix_browser import PHONE, Visit
from tests.fixtures.fix_stack import RunningStack
from tests.pages.scenes import PASSWORD, Shopkeeper, log_in_staff, register, shop_url


def test_with_the_keyboard_alone(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale()
    page = visit(shop_url(stack, sale), also=[stack.edge_url]).page
    expect(page.get_by_text("The sale is open.")).to_be_visible()
    email = register(page)
    _tab_to(page, "#logout")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Log in to buy")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Log in to buy")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    _tab_to(page, "#email")
    page.keyboard.type(email)
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Buy", exact=True)).to_be_visible()
    _tab_to(page, "#items input")
    page.keyboard.press("ArrowUp")
    assert page.locator("#items input").input_value() == "2"
    _tab_to(page, "#buy")
    page.keyboard.press("Enter")
    expect(page.locator("#order-state")).to_have_text("Reserved for you.")
    expect(page.locator("#order-title")).to_be_focused()
    _tab_to(page, "#cancel")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#cancel")).to_be_focused()
    page.keyboard.press("Enter")
    _tab_to(page, "#confirm-yes")
    page.keyboard.press("Enter")
    expect(page.locator("#order-state")).to_have_text("Cancelled.")


def _tab_to(page: Page, selector: str) -> None:
    """Press Tab until the element has the focus."""
    for _ in range(60):
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} cannot be reached")


def test_a_dialog_opened_again_at_once(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    """The close event of a dialog comes later: the next question must not take it for its own answer."""
    stack, sale = running_stack.stack, keeper.sale()
    page = visit(shop_url(stack, sale), also=[stack.edge_url]).page
    register(page)
    page.locator("#buy").click()
    expect(page.locator("#order-state")).to_have_text("Reserved for you.")
    page.locator("#cancel").click()
    page.evaluate(
        """() => {
          document.querySelector('#confirm').close('no');
          document.querySelector('#cancel').click();
        }"""
    )
    page.locator("#confirm-yes").click()
    expect(page.locator("#order-state")).to_have_text("Cancelled.")


def test_on_a_phone(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack = running_stack.stack
    sale = keeper.sale(
        name="A sale with a name that is rather long, and aVeryLongWordInItThatCannotBeBrokenAnywhere" * 2
    )
    shop = visit(shop_url(stack, sale), also=[stack.edge_url], viewport=PHONE, is_mobile=True, has_touch=True)
    expect(shop.page.get_by_text("The sale is open.")).to_be_visible()
    assert shop.overflow_px == 0
    register(shop.page)
    shop.page.get_by_role("button", name="Buy", exact=True).tap()
    expect(shop.page.locator("#order-state")).to_have_text("Reserved for you.")
    expect(shop.page.locator("#history-rows tr")).to_have_count(1)
    assert shop.overflow_px == 0
    staff = visit(stack.backoffice_url, viewport=PHONE, is_mobile=True, has_touch=True, color_scheme="dark")
    log_in_staff(staff.page, stack)
    expect(staff.page.locator(f'[data-running="{sale["id"]}"] [data-count="reserved"]')).to_have_text("1")
    expect(staff.page.locator(f'#sales [data-sale="{sale["id"]}"]')).to_be_visible()
    assert staff.overflow_px == 0
    docs = visit(f"{stack.backoffice_url}/docs", also=[stack.edge_url], viewport=PHONE)
    expect(docs.page.locator('[data-tag="sales"]')).to_be_visible()
    docs.page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    assert docs.overflow_px == 0


def test_names_are_text(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack = running_stack.stack
    name = "<img src=x onerror=\"document.body.id='in'\">"
    sale = keeper.sale(name=name)
    shop = visit(shop_url(stack, sale), also=[stack.edge_url]).page
    expect(shop.get_by_role("heading", name=name)).to_be_visible()
    staff = visit(stack.backoffice_url).page
    log_in_staff(staff, stack)
    expect(staff.locator(f'[data-running="{sale["id"]}"]').get_by_role("heading", name=name)).to_be_visible()
    expect(staff.locator(f'#sales [data-sale="{sale["id"]}"]').get_by_role("rowheader", name=name)).to_be_visible()
    for page in (shop, staff):
        assert page.locator("img").count() == 0
        assert page.evaluate("document.body.id") == ""


def test_a_sale_that_does_not_exist(visit: Visit, running_stack: RunningStack) -> None:
    stack = running_stack.stack
    page = visit(f"{stack.backoffice_url}/shop/01890000-0000-7000-8000-000000000001", also=[stack.edge_url]).page
    expect(page.get_by_text("This sale does not exist.")).to_be_visible()


def test_the_api_page_needs_no_other_host(visit: Visit, running_stack: RunningStack) -> None:
    stack = running_stack.stack
    page = visit(f"{stack.backoffice_url}/docs", also=[stack.edge_url]).page
    operation = page.locator("details", has_text="POST /v1/sales Create a sale")
    operation.locator("summary").click()
    expect(operation.get_by_text("idempotency_key_reused")).to_be_visible()
    page.get_by_label("Filter").fill("restock")
    expect(page.locator("#operations details:visible")).to_have_count(1)
    page.get_by_label("Filter").fill("")
    page.get_by_label("Service", exact=True).select_option("edge")
    expect(page.locator("details", has_text="POST /v1/sales/{sale_id}/orders")).to_be_visible()
