"""Letters: the mail of a notice, text and HTML, in the language of its reader.

Text that is ASCII travels as such, other text as quoted-printable UTF-8, both in short lines: letters arrive unchanged.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from typing import Literal
from uuid import UUID

from domain.mailed_tokens import encode_mailed_token
from domain.notices import Notice
from notices.composing import STYLES, Composer
from notices.language import ENGLISH, language_or, require_language

_LINE_LENGTH_MAX = 990  # RFC 5322 allows 998


@dataclass(frozen=True, slots=True)
class Recipient:
    """An account that gets mail, at its address or at one that it has left.

    `language` is the account's choice. `muted`: the account does not want this kind of notice.
    """

    user_id: UUID
    email: str = field(repr=False)
    email_folded: str = field(repr=False)
    verified: bool
    language: str | None = None
    muted: bool = False


class SenderInvalid(ValueError):
    """FLASHSALE_MAIL_SENDER is not an address, with or without a name."""


class Writer:
    """Writes letters in the name of one sender."""

    def __init__(self, *, sender: str, link_url: str, default_language: str = ENGLISH) -> None:
        """`sender` as in a From header; `link_url` is the beginning of links. Raises SenderInvalid, UnknownLanguage."""
        name, address = parseaddr(sender)
        try:
            self._from = Address(display_name=name, addr_spec=address)
        except (ValueError, IndexError) as error:
            raise SenderInvalid(f"FLASHSALE_MAIL_SENDER: {error}") from error
        if not self._from.domain or not sender.isascii() or not sender.isprintable():
            raise SenderInvalid("FLASHSALE_MAIL_SENDER: not an ASCII address with a domain")
        self._composer = Composer(link_url)
        self._default_language = require_language(default_language)

    @property
    def sender(self) -> str:
        """The address alone, for the envelope."""
        return self._from.addr_spec

    def write(self, notice: Notice, recipient: Recipient, *, secret: bytes, now: datetime) -> EmailMessage:
        """The letter. The Message-ID follows from the secret, so that no mailbox drops a letter with a newer token.

        Raises ValueError or MessageError for an address that no letter can have.
        """
        language = language_or(recipient.language, self._default_language)
        token = None if STYLES[notice.kind].life is None else encode_mailed_token(recipient.user_id, secret)
        words = self._composer.letter(notice, language, token=token)
        letter = EmailMessage(policy=SMTP)
        letter["From"] = self._from
        # In parts, so that it is quoted where necessary: some addresses in use violate RFC 5322.
        local_part, _, domain = recipient.email.rpartition("@")
        letter["To"] = Address(username=local_part, domain=domain)
        letter["Subject"] = words.subject
        letter["Date"] = format_datetime(now)
        letter["Message-ID"] = f"<{notice.id}.{hashlib.sha256(secret).hexdigest()[:16]}@{self._from.domain}>"
        letter["Auto-Submitted"] = "auto-generated"  # RFC 3834: no holiday replies to a machine
        letter.set_content(words.text, cte=_encoding(words.text))
        letter.add_alternative(words.html, subtype="html", cte=_encoding(words.html))
        letter["Content-Language"] = language.code  # last: a new content drops the headers that describe it
        return letter


def _encoding(text: str) -> Literal["7bit", "quoted-printable"]:
    plain = text.isascii() and all(len(line) <= _LINE_LENGTH_MAX for line in text.split("\n"))
    return "7bit" if plain else "quoted-printable"
