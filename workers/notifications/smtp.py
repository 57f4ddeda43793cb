"""SMTP: hands letters to a mail server. Decides nothing about retries: it returns the result for a letter.

smtp://host[:25]                  encrypted by STARTTLS where the server offers it
smtp://user:password@host[:587]   STARTTLS is demanded: a password never travels in the clear
smtps://[user:password@]host[:465]
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from dataclasses import dataclass
from email.message import EmailMessage
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

import aiosmtplib
from pydantic import SecretStr

COMMAND_S_MAX = 10.0
LETTER_S_MAX = 30.0
_NOT_AVAILABLE = 421  # RFC 5321, section 3.8: the server is going away, whatever the command
_ADDRESS = re.compile(r"[^\s<>()]+@[^\s<>()]+")


class SmtpUrlInvalid(ValueError):
    """FLASHSALE_SMTP_URL names no mail server; the message shows no password."""


class MailServerAway(Exception):
    """The server takes no mail from this client at present; carries the client's message."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The server has the letter."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The server did not take this letter. `for_good`: never; otherwise it may take it later, or has it after all."""

    for_good: bool
    reason: str


@dataclass(frozen=True, slots=True)
class MailServer:
    """Address and login of the mail server."""

    host: str
    port: int
    tls: bool
    user: str | None
    password: SecretStr | None

    @classmethod
    def from_url(cls, url: SecretStr) -> MailServer:
        """Raises SmtpUrlInvalid."""
        try:
            parts = urlsplit(url.get_secret_value())
            port = parts.port
        except ValueError:
            raise SmtpUrlInvalid("FLASHSALE_SMTP_URL: not a URL") from None
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise SmtpUrlInvalid("FLASHSALE_SMTP_URL: not of the form smtp[s]://[user:password@]host[:port]")
        tls, user, password = parts.scheme == "smtps", parts.username or None, parts.password or None
        if (user is None) != (password is None):
            raise SmtpUrlInvalid("FLASHSALE_SMTP_URL: a user needs a password, and the other way round")
        default = 465 if tls else 25 if user is None else 587
        return cls(
            parts.hostname,
            port or default,
            tls,
            None if user is None else unquote(user),
            None if password is None else SecretStr(unquote(password)),
        )


class SmtpSession:
    """A connection to the mail server for a few letters, opened with the first one: an async context manager."""

    def __init__(self, server: MailServer, *, command_s_max: float = COMMAND_S_MAX) -> None:
        """Each answer of the server is waited for `command_s_max` seconds."""
        self._client = aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port,
            username=server.user,
            password=None if server.password is None else server.password.get_secret_value(),
            use_tls=server.tls,
            start_tls=False if server.tls else (None if server.user is None else True),
            timeout=command_s_max,
            local_hostname=socket.gethostname(),  # the default asks DNS and blocks the event loop
        )

    async def __aenter__(self) -> Self:
        """Connects to nothing yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say QUIT if the server is still connected."""
        with contextlib.suppress(aiosmtplib.SMTPException, OSError, TimeoutError):
            if self._client.is_connected:
                await self._client.quit()
        self._client.close()

    async def open(self) -> None:
        """Connect and log in unless connected. Raises MailServerAway."""
        if self._client.is_connected:
            return
        try:
            async with asyncio.timeout(LETTER_S_MAX):
                await self._client.connect()
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
            self._client.close()
            raise MailServerAway(_words(error)) from error

    async def send(self, letter: EmailMessage, *, sender: str, recipient: str) -> Taken | Refused:
        """Hand over one letter. Raises MailServerAway when it was not tried, ValueError for an invalid address."""
        await self.open()
        try:
            async with asyncio.timeout(LETTER_S_MAX):
                await self._client.sendmail(sender, [recipient], letter.as_bytes())
        except aiosmtplib.SMTPSenderRefused as error:
            # The server would refuse every letter of this sender: do not spend the attempts of each.
            raise MailServerAway(_words(error)) from error
        except aiosmtplib.SMTPRecipientsRefused as error:
            return _refused(error.recipients[0])
        except aiosmtplib.SMTPResponseException as error:
            return _refused(error)
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
            # The connection broke in the middle: the server may have the letter.
            self._client.close()
            return Refused(for_good=False, reason=_words(error))
        return Taken()


def _refused(error: aiosmtplib.SMTPResponseException) -> Refused:
    if error.code == _NOT_AVAILABLE:
        raise MailServerAway(_words(error)) from error
    return Refused(for_good=error.code >= 500, reason=_words(error))


def _words(error: BaseException) -> str:
    """An error's message without the address: servers often repeat it, and dead letters outlive an erased account."""
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return _shown(f"{error.code} {error.message}")
    return _shown(str(error).strip()) or type(error).__name__


def _shown(words: str) -> str:
    # aiosmtplib keeps bytes that are not UTF-8 as lone surrogates, which neither JSON nor PostgreSQL takes.
    return _ADDRESS.sub("(address)", words.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
