"""The pages behind the links in mails, in a real browser on a whole stack: each link works after a click, and once."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from ops.stack_file import Stack
from tests.devstack.test_mail import letters
from tests.fixtures.fix_browser import PHONE, Visit
from tests.fixtures.fix_mail import text_of
from tests.fixtures.fix_stack import RunningStack, eventually

PASSWORD, NEW = "a buyer's password", "a buyer's next password"


@pytest.fixture
def address(running_stack: RunningStack) -> str:
    """The address of a registered buyer."""
    email = f"buyer-{secrets.token_hex(4)}@shop.example"
    body = {"email": email, "password": PASSWORD, "name": "Ada"}
    assert httpx.post(f"{running_stack.stack.backoffice_url}/v1/auth/register", json=body).status_code == 201
    return email


def link_of(stack: Stack, address: str, subject: str) -> str:
    """The link in a letter."""
    folder = Path(stack.mail_folder)
    eventually(lambda: subject in letters(folder, address))
    (link,) = re.findall(r"^http\S+$", text_of(letters(folder, address)[subject]), re.MULTILINE)
    return str(link)


def logs_in(stack: Stack, address: str, password: str) -> bool:
    body = {"email": address, "password": password}
    return httpx.post(f"{stack.backoffice_url}/v1/auth/login", json=body).status_code == 200


def test_a_forgotten_password(visit: Visit, running_stack: RunningStack, address: str) -> None:
    stack = running_stack.stack
    forgot = visit(f"{stack.backoffice_url}/account/password-reset", viewport=PHONE)
    forgot.page.get_by_label("E-mail address").fill(address)
    forgot.page.get_by_role("button", name="Send link").click()
    expect(forgot.page.get_by_text("an e-mail is on its way")).to_be_visible()
    assert forgot.overflow_px == 0

    link = link_of(stack, address, "Reset your password")
    page = visit(link, viewport=PHONE).page
    expect(page).to_have_url(link.partition("#")[0])  # the token is not in the history
    page.get_by_label("New password, at least 8").fill(NEW)
    page.get_by_role("button", name="Set password").click()
    expect(page.get_by_role("heading", name="Password changed")).to_be_focused()
    assert logs_in(stack, address, NEW) and not logs_in(stack, address, PASSWORD)

    again = visit(link).page
    again.get_by_label("New password, at least 8").fill("something else")
    again.get_by_role("button", name="Set password").click()
    expect(again.get_by_text("This link is not valid any more")).to_be_visible()
    expect(again.get_by_role("button", name="Send link")).to_be_visible()
    assert logs_in(stack, address, NEW)


def test_an_address_is_confirmed_only_by_a_click(visit: Visit, running_stack: RunningStack, address: str) -> None:
    link = link_of(running_stack.stack, address, "Confirm your e-mail address")
    visit(link)  # a mail scanner
    page = visit(link).page
    page.get_by_role("button", name="Confirm address").click()
    expect(page.get_by_text("Your address is confirmed.")).to_be_visible()
    again = visit(link).page
    again.get_by_role("button", name="Confirm address").click()
    expect(again.get_by_text("This link is not valid any more")).to_be_visible()


def test_a_changed_address_is_undone_from_the_old_mailbox(
    visit: Visit, running_stack: RunningStack, address: str
) -> None:
    stack, other = running_stack.stack, f"thief-{secrets.token_hex(4)}@x.example"
    with httpx.Client(base_url=stack.backoffice_url) as http:
        tokens = http.post("/v1/auth/login", json={"email": address, "password": PASSWORD}).json()
        http.headers["Authorization"] = f"Bearer {tokens['access_token']}"
        assert http.patch("/v1/users/me", json={"email": other}).status_code == 200
    link = link_of(stack, address, "Your e-mail address was changed")
    opened = visit(link, viewport=PHONE)
    opened.page.get_by_role("button", name="Undo the change").click()
    expect(opened.page.get_by_role("heading", name="The account has its old address again")).to_be_focused()
    assert opened.overflow_px == 0
    assert not logs_in(stack, other, PASSWORD) and not logs_in(stack, address, PASSWORD)
    page = visit(link_of(stack, address, "Reset your password"), viewport=PHONE).page
    page.get_by_label("New password, at least 8").fill(NEW)
    page.get_by_role("button", name="Set password").click()
    expect(page.get_by_role("heading", name="Password changed")).to_be_focused()
    assert logs_in(stack, address, NEW)
    again = visit(link).page
    again.get_by_role("button", name="Undo the change").click()
    expect(again.get_by_text("This link is not valid any more.")).to_be_visible()
