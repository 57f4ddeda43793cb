"""Mails of a whole stack: the steps of a new account, from the registration to the mailbox and back."""

from __future__ import annotations

import asyncio
import email
import email.policy
import resource
import secrets
import smtplib
import stat
import subprocess
import sys
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from unittest.mock import MagicMock

import httpx
import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

from devstack.children import free_port, port_is_free
from devstack.mailbox import MAIL_BYTES_MAX, Mailbox
from ops.shop import Shop
from tests.fixtures.fix_mail import text_of, token_of
from tests.fixtures.fix_stack import ROOT, RunningStack, eventually

PASSWORD = "correct horse battery"
NEW = "another long password"


def letters(folder: Path, recipient: str) -> dict[str, EmailMessage]:
    """The newest mail to an address for each subject."""
    found: dict[str, EmailMessage] = {}
    for path in sorted(folder.glob(f"*-{recipient}.eml")):
        letter = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
        assert isinstance(letter, EmailMessage)
        found[letter["Subject"]] = letter
    return found


def test_register_verify_forget_reset(running_stack: RunningStack) -> None:
    stack = running_stack.stack
    address = f"buyer-{secrets.token_hex(4)}@shop.example"
    folder = Path(stack.mail_folder)

    def letter(subject: str) -> EmailMessage:
        eventually(lambda: subject in letters(folder, address))
        return letters(folder, address)[subject]

    with httpx.Client(base_url=stack.backoffice_url, timeout=20) as http:

        def post(path: str, **body: str) -> httpx.Response:
            return http.post(f"/v1/auth/{path}", json=body)

        assert post("register", email=address, password=PASSWORD, name="Ada").status_code == 201
        asked = letter("Confirm your e-mail address")
        assert stack.backoffice_url in text_of(asked)
        assert post("verify-email", token=token_of(asked)).status_code == 204
        tokens = post("login", email=address, password=PASSWORD).json()
        assert post("password-reset", email=address).status_code == 204
        assert post("password-reset", email=f"nobody-{address}").status_code == 204
        sent = letter("Reset your password")
        assert post("password-reset", token=token_of(sent), new_password=NEW).status_code == 204
        letter("Your password was changed")
        assert post("login", email=address, password=PASSWORD).status_code == 401
        assert post("login", email=address, password=NEW).status_code == 200
        assert post("refresh", refresh_token=tokens["refresh_token"]).status_code == 401
    assert letters(folder, f"nobody-{address}") == {}
    # A reader of the folder could use the tokens.
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    for log in running_stack.folder.logs.iterdir():
        text = log.read_text(errors="replace")
        assert token_of(asked) not in text and token_of(sent) not in text and address not in text, log.name


def test_a_buyer_is_told_of_an_order_in_the_language_of_the_account(running_stack: RunningStack) -> None:
    """The whole way: order, stream, queue, shard, outbox, event log, queue, mail server. One letter."""
    stack = running_stack.stack
    address = f"buyer-{secrets.token_hex(4)}@shop.example"
    shop = Shop.log_in(stack.backoffice_url, **stack.admin)
    sku = f"MAIL-{secrets.token_hex(3)}"
    shop.create_product(sku=sku, name="A thing", price_minor=1999)
    sale = shop.create_open_sale(name="Mail", stock={sku: 5}, price_minor=1999, hold_s=600, per_user_limit=5)
    with httpx.Client(base_url=stack.backoffice_url, timeout=20) as http:
        account = {"email": address, "password": PASSWORD}
        http.post("/v1/auth/register", json={**account, "name": "Ada"}).raise_for_status()
        token = http.post("/v1/auth/login", json=account).json()["access_token"]
        bearer = {"Authorization": f"Bearer {token}"}
        http.patch("/v1/users/me/preferences", json={"language": "de"}, headers=bearer).raise_for_status()
        assert len(http.get("/v1/push-key").json()["public_key"]) == 87  # the stack has a key of its own
    with httpx.Client(base_url=stack.edge_url, headers={**bearer, "Idempotency-Key": "one"}, timeout=20) as http:
        body = {"items": [{"sku": sku, "quantity": 2}]}
        order_id = http.post(f"/v1/sales/{sale['id']}/orders", json=body).raise_for_status().json()["order_id"]
        http.post(f"/v1/orders/{order_id}/cancel").raise_for_status()
    subject, folder = "Ihre Bestellung wurde storniert", Path(stack.mail_folder)
    eventually(lambda: subject in letters(folder, address))
    text = text_of(letters(folder, address)[subject])
    assert f"2 x {sku}: 39,98 EUR" in text and f"{stack.backoffice_url}/shop/orders/{order_id}" in text


@pytest.fixture
def mailbox(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """Folder and port of a mailbox that belongs to the test."""
    port = free_port()
    folder = tmp_path / "mail"
    argv = [sys.executable, "-m", "devstack.mailbox", str(folder), str(port)]
    process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL)
    try:
        eventually(lambda: not port_is_free(port))
        yield folder, port
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_the_mailbox_keeps_a_file_for_each_recipient(mailbox: tuple[Path, int]) -> None:
    folder, port = mailbox
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        client.sendmail("a@b.example", ["c@d.example", "../../e@f.example"], b"Subject: x\r\n\r\n.\r\nbody\r\n")
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 2
    assert names[0].endswith("-c@d.example.eml") and names[1].endswith("-.._.._e@f.example.eml")
    assert {path.read_bytes() for path in folder.iterdir()} == {b"Subject: x\r\n\r\n.\r\nbody\r\n"}


def test_the_mailbox_takes_no_mail_without_end(mailbox: tuple[Path, int]) -> None:
    folder, port = mailbox
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client, pytest.raises(smtplib.SMTPResponseException) as caught:
        client.sendmail("a@b.example", ["c@d.example"], b"x" * 998 + b"\r\n" + b"y" * 998 + b"\r\n" * 1_200_000)
    assert caught.value.smtp_code == 552
    assert list(folder.iterdir()) == []


def test_the_mailbox_keeps_the_newest(tmp_path: Path) -> None:
    kept = Mailbox(tmp_path, kept_max=3)
    for number in range(5):
        kept._keep(f"r{number}@x.example", str(number).encode())
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["2", "3", "4"]
    # A new run keeps the mails of the last one.
    Mailbox(tmp_path, kept_max=3)._keep("r5@x.example", b"5")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_full_disk_is_temporary_for_senders_and_leaves_no_half_of_a_mail(tmp_path: Path) -> None:
    mailbox, envelope = Mailbox(tmp_path), Envelope()
    envelope.rcpt_tos, envelope.content = ["c@d.example"], b"x" * (MAIL_BYTES_MAX // 2)
    server, session = MagicMock(spec=SMTP), MagicMock(spec=Session)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))  # no room for more than 1 KiB of a file
    try:
        answer = asyncio.run(mailbox.handle_DATA(server, session, envelope))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert answer.startswith("452 ")
    assert list(tmp_path.iterdir()) == []
    assert asyncio.run(mailbox.handle_DATA(server, session, envelope)) == "250 kept"
    assert len(list(tmp_path.iterdir())) == 1
