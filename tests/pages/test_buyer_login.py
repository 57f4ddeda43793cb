"""Logins of buyers on the shop page: renewal of tokens, ended sessions, log out."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import httpx
import jwt
from playwright.sync_api import expect

from runtime.tokens.keys import load_token_keys, mint_buyer_token
from tests.fixtures.fix_browser import Visit
from tests.fixtures.fix_stack import RunningStack
from tests.pages.scenes import Shopkeeper, buyer_at, log_in_buyer, register, shop_url


def test_an_expired_token_is_renewed(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale()
    page = buyer_at(visit, stack, sale)
    before = page.evaluate("JSON.parse(sessionStorage.getItem('flashsale.buyer'))")
    expired = _expired(running_stack, before["access"])
    # As with a wrong local clock: the page uses a token that the edge does not accept any more.
    page.evaluate(
        """(token) => {
          const kept = JSON.parse(sessionStorage.getItem('flashsale.buyer'));
          sessionStorage.setItem('flashsale.buyer', JSON.stringify({...kept, access: token}));
        }""",
        expired,
    )
    page.reload()
    page.get_by_role("button", name="Buy", exact=True).click()
    expect(page.locator("#order-state")).to_have_text("Reserved for you.")
    after = page.evaluate("JSON.parse(sessionStorage.getItem('flashsale.buyer'))")
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
          const kept = JSON.parse(sessionStorage.getItem('flashsale.buyer'));
          sessionStorage.setItem('flashsale.buyer', JSON.stringify({...kept, renewAt: 0, refresh: 'A'.repeat(107)}));
        }"""
    )
    page.reload()
    expect(page.get_by_text("Your session has ended. Please log in again")).to_be_visible()
    log_in_buyer(page, email)
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in to buy")).to_be_visible()
    assert page.evaluate("sessionStorage.getItem('flashsale.buyer')") is None


def test_a_renewal_answered_after_the_log_out_does_not_log_in(
    visit: Visit, running_stack: RunningStack, keeper: Shopkeeper
) -> None:
    stack, sale = running_stack.stack, keeper.sale()
    page = buyer_at(visit, stack, sale)
    held: list[Any] = []
    page.route("**/v1/auth/refresh", lambda route: held.append((route, route.fetch())))
    page.evaluate(
        """() => {
          const kept = JSON.parse(sessionStorage.getItem('flashsale.buyer'));
          sessionStorage.setItem('flashsale.buyer', JSON.stringify({...kept, renewAt: 0}));
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
    assert page.evaluate("sessionStorage.getItem('flashsale.buyer')") is None
    again = httpx.post(f"{stack.backoffice_url}/v1/auth/refresh", json={"refresh_token": renewed})
    assert again.status_code == 401
