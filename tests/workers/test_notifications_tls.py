"""Letters over encrypted connections to a real mail server with a login; an unknown certificate is refused."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from tests.fixtures.fix_mail import PASSWORD, USER, MailServerProcess, Postbox
from workers.notifications.smtp import MailServer, MailServerAway, SmtpSession, Taken

SENDER, RECIPIENT = "no-reply@shop.example", "buyer@shop.example"
Start = Callable[..., MailServerProcess]
pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH")  # the library cannot see that smtps is encrypted


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "certificate.pem").write_bytes(made.public_bytes(pem))
    (tmp_path / "key.pem").write_bytes(private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    return tmp_path / "certificate.pem", context


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a mail server that takes letters only after a login."""
    servers: list[MailServerProcess] = []

    def begin(**options: Any) -> MailServerProcess:
        postbox = Postbox()
        login = {"authenticator": postbox.check_login, "auth_required": True, "auth_require_tls": False}
        server = MailServerProcess(postbox, options={**login, **options})
        servers.append(server)
        server.start()
        return server

    yield begin
    for server in servers:
        server.stop()


def url(scheme: str, port: int, password: str = PASSWORD) -> SecretStr:
    return SecretStr(f"{scheme}://{USER}:{quote(password)}@127.0.0.1:{port}")


def letter() -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = SENDER, RECIPIENT, "x"
    message.set_content("text")
    return message


async def send(to: SecretStr) -> object:
    async with SmtpSession(MailServer.from_url(to)) as session:
        return await session.send(letter(), sender=SENDER, recipient=RECIPIENT)


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
async def test_a_letter_over_an_encrypted_connection_with_a_login(
    scheme: str, certificate: tuple[Path, ssl.SSLContext], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted, context = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    server = start(**({"ssl_context": context} if scheme == "smtps" else {"tls_context": context}))
    assert await send(url(scheme, server.port)) == Taken()
    assert server.postbox.logins == [USER]
    assert [kept["Subject"] for kept in server.postbox.letters] == ["x"]


async def test_a_wrong_password_burns_no_letter(
    certificate: tuple[Path, ssl.SSLContext], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted, context = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    server = start(tls_context=context)
    with pytest.raises(MailServerAway) as caught:
        await send(url("smtp", server.port, "wrong"))
    assert "535" in str(caught.value)
    assert server.postbox.letters == []


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
async def test_a_strangers_certificate_gets_no_password(
    scheme: str, certificate: tuple[Path, ssl.SSLContext], start: Start
) -> None:
    _, context = certificate
    server = start(**({"ssl_context": context} if scheme == "smtps" else {"tls_context": context}))
    with pytest.raises(MailServerAway):
        await send(url(scheme, server.port))
    assert server.postbox.logins == []
