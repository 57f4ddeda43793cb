"""Logins of buyers on the shop page: renewal of tokens, ended sessions, log out."""

from __future__ import annotations

import json
import time
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import psycopg
from playwright.sync_api import Page, expect

from ops.stack_file import Stack
from runtime.tokens.keys import load_token_keys, mint_buyer_token
from tests.fixtures.fix_browser import Visit
from tests.fixtures.fix_stack import RunningStack
from tests.pages.scenes import PASSWORD, Shopkeeper, buyer_at, log_in_buyer, orders_of, register, shop_url


def test_an_expired_token_is_renewed(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale()
    page = buyer_at(visit, stack, sale)
    before = page.evaluate("JSON.parse(localStorage.getItem('flashsale.buyer'))")
    expired = _expired(running_stack, before["access"])
    # As with a wrong local clock: the page uses a token that the edge does not accept any more.
    page.evaluate(
        """(token) => {
          const kept = JSON.parse(localStorage.getItem('flashsale.buyer'));
          localStorage.setItem('flashsale.buyer', JSON.stringify({...kept, access: token}));
        }""",
        expired,
    )
    page.reload()
    page.get_by_role("button", name="Buy", exact=True).click()
    expect(page.locator("#order-state")).to_have_text("Reserved for you.")
    after = page.evaluate("JSON.parse(localStorage.getItem('flashsale.buyer'))")
    assert after["access"] != expired and after["refresh"] != before["refresh"]
    assert keeper.report(sale)["reserved"] == 1


def _expired(running_stack: RunningStack, token: str) -> str:
    user_id = UUID(jwt.decode(token, options={"verify_signature": False})["sub"])
    keys = load_token_keys(running_stack.folder.token_keys)
    return mint_buyer_token(keys, user_id=user_id, issuer="flashsale", ttl_s=60, now_s=int(time.time()) - 3600)


def test_an_ended_session_asks_for_a_login(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale()
    page = visit(shop_url(stack, sale), also=[stack.edge_url]).page
    email = register(page)
    page.evaluate(
        """() => {
          const kept = JSON.parse(localStorage.getItem('flashsale.buyer'));
          localStorage.setItem('flashsale.buyer', JSON.stringify({...kept, renewAt: Date.now() - 1, refresh: 'A'.repeat(107)}));
        }"""
    )
    page.reload()
    expect(page.get_by_text("Your session has ended. Please log in again")).to_be_visible()
    log_in_buyer(page, email)
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in to buy")).to_be_visible()
    assert page.evaluate("localStorage.getItem('flashsale.buyer')") is None


def test_a_renewal_answered_after_the_log_out_does_not_log_in(
    visit: Visit, running_stack: RunningStack, keeper: Shopkeeper
) -> None:
    stack, sale = running_stack.stack, keeper.sale()
    page = buyer_at(visit, stack, sale)
    held: list[Any] = []
    page.route("**/v1/auth/refresh", lambda route: held.append((route, route.fetch())))
    page.evaluate(
        """() => {
          const kept = JSON.parse(localStorage.getItem('flashsale.buyer'));
          localStorage.setItem('flashsale.buyer', JSON.stringify({...kept, renewAt: Date.now() - 1}));
        }"""
    )
    page.reload()
    while not held:
        page.wait_for_timeout(50)
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in to buy")).to_be_visible()
    ((route, answer),) = held
    renewed = answer.json()["refresh_token"]
    with page.expect_response(lambda seen: seen.url.endswith("/logout") and renewed in (seen.request.post_data or "")):
        route.fulfill(response=answer)
    expect(page.get_by_role("heading", name="Log in to buy")).to_be_visible()
    assert page.evaluate("localStorage.getItem('flashsale.buyer')") is None
    again = httpx.post(f"{stack.backoffice_url}/v1/auth/refresh", json={"refresh_token": renewed})
    assert again.status_code == 401


EXPIRE = """() => {
  const kept = JSON.parse(localStorage.getItem('flashsale.buyer'));
  localStorage.setItem('flashsale.buyer', JSON.stringify({...kept, renewAt: Date.now() - 1}));
}"""


def settled(*tabs: Page) -> None:
    """Return when the tabs see the same renewed login. A write reaches the other tabs a little later."""
    while True:
        seen = [tab.evaluate("localStorage.getItem('flashsale.buyer')") for tab in tabs]
        if len(set(seen)) == 1 and json.loads(seen[0])["renewAt"] > time.time() * 1000:
            return
        tabs[0].wait_for_timeout(50)


def age_uses(stack: Stack) -> None:
    """From now on, another use of a used refresh token counts as theft."""
    for dsn in stack.shard_dsns:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("UPDATE refresh_tokens SET used_at = used_at - interval '1 minute'")


def duplicate(page: Page) -> Page:
    """A second tab with a copy of what belongs to the first, as browsers duplicate a tab."""
    copied = page.evaluate("JSON.stringify({...sessionStorage})")
    tab = page.context.new_page()
    tab.goto(page.url)
    tab.evaluate(
        "(copied) => Object.entries(JSON.parse(copied)).forEach((pair) => sessionStorage.setItem(...pair))", copied
    )
    tab.reload()
    return tab


def test_duplicated_tabs_stay_logged_in(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    """They renew one login. With a copy of the refresh token each, the second use would log out both."""
    stack, sale = running_stack.stack, keeper.sale()
    page = buyer_at(visit, stack, sale)
    tab = duplicate(page)
    for first, second in ((page, tab), (tab, page)):
        first.evaluate(EXPIRE)
        for shown in (first, second):
            shown.get_by_role("button", name="Refresh").click()  # both need a newer token now
        settled(first, second)
        age_uses(stack)
    # One of the tabs has slept while the other renewed the login.
    page.evaluate(EXPIRE)
    page.get_by_role("button", name="Refresh").click()
    settled(page, tab)
    age_uses(stack)
    tab.evaluate(EXPIRE)
    tab.get_by_role("button", name="Buy", exact=True).click()
    expect(tab.locator("#order-state")).to_have_text("Reserved for you.")
    settled(page, tab)
    page.reload()
    expect(page.get_by_role("heading", name="Your orders")).to_be_visible()
    assert len(orders_of(page, stack)) == 1


def test_tabs_log_in_and_out_together(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale()
    page = visit(shop_url(stack, sale), also=[stack.edge_url]).page
    tab = duplicate(page)
    email = register(page)
    expect(tab.get_by_role("heading", name="Your orders")).to_be_visible()
    expect(tab.locator("#who")).to_have_text(f"{email} (address not verified)")
    tab.get_by_role("button", name="Log out").click()
    expect(page.get_by_text("You have logged out in another tab")).to_be_visible()
    expect(page.get_by_role("heading", name="Log in to buy")).to_be_visible()
    log_in_buyer(page, email)
    other = register_over(stack)
    page.get_by_role("button", name="Log out").click()
    log_in_buyer(page, other)
    expect(tab.locator("#who")).to_contain_text(other)


def test_a_login_that_no_tab_has_used_for_long_is_not_taken_up_again(
    visit: Visit, running_stack: RunningStack, keeper: Shopkeeper
) -> None:
    """The storage that tabs share outlives the browser."""
    page = buyer_at(visit, running_stack.stack, keeper.sale())
    page.evaluate(EXPIRE.replace("Date.now() - 1", "Date.now() - 13 * 3600 * 1000"))
    with page.expect_response(lambda seen: seen.url.endswith("/v1/auth/logout")):
        page.reload()
    expect(page.get_by_role("heading", name="Log in to buy")).to_be_visible()
    assert page.evaluate("localStorage.length") == 0


def register_over(stack: Stack) -> str:
    """Another buyer, made over HTTP."""
    email = f"buyer-{uuid4().hex[:12]}@example.com"
    body = {"email": email, "password": PASSWORD, "name": "B"}
    assert httpx.post(f"{stack.backoffice_url}/v1/auth/register", json=body).status_code == 201
    return email
