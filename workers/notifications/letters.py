"""Letters: the mail of a notice, text and HTML, from the templates beside this module. Performs no other I/O.

Letters contain no name and no other text of an account: a person who registers a stranger's address must not get
words of their own into the stranger's mailbox. Letters are plain ASCII in short lines, so that they arrive unchanged.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from functools import cache
from importlib import resources
from string import Template
from urllib.parse import quote

from domain.mailed_tokens import EMAIL_UNDO_LIFE, PASSWORD_RESET_LIFE, VERIFY_EMAIL_LIFE, encode_mailed_token
from domain.notices import Notice, NoticeKind
from workers.notifications.accounts import Recipient


@dataclass(frozen=True, slots=True)
class Style:
    """How a kind of notice is written.

    `page` is the path of its link. `life` is the life of its token, None for no token.
    """

    subject: str
    page: str
    life: timedelta | None


STYLES = {
    NoticeKind.VERIFY_EMAIL: Style("Confirm your e-mail address", "/account/verify-email", VERIFY_EMAIL_LIFE),
    NoticeKind.PASSWORD_RESET: Style("Reset your password", "/account/password-reset", PASSWORD_RESET_LIFE),
    NoticeKind.PASSWORD_CHANGED: Style("Your password was changed", "/account/password-reset", None),
    NoticeKind.EMAIL_CHANGED: Style("Your e-mail address was changed", "/account/undo-email-change", EMAIL_UNDO_LIFE),
}


class SenderInvalid(ValueError):
    """FLASHSALE_MAIL_SENDER is not an address, with or without a name."""


class Writer:
    """Writes letters in the name of one sender."""

    def __init__(self, *, sender: str, link_url: str) -> None:
        """`sender` as in a From header; `link_url` is the beginning of links. Raises SenderInvalid."""
        name, address = parseaddr(sender)
        try:
            self._from = Address(display_name=name, addr_spec=address)
        except (ValueError, IndexError) as error:
            raise SenderInvalid(f"FLASHSALE_MAIL_SENDER: {error}") from error
        if not self._from.domain or not sender.isascii() or not sender.isprintable():
            raise SenderInvalid("FLASHSALE_MAIL_SENDER: not an ASCII address with a domain")
        self._link_url = link_url.rstrip("/")

    @property
    def sender(self) -> str:
        """The address alone, for the envelope."""
        return self._from.addr_spec

    def write(self, notice: Notice, recipient: Recipient, *, secret: bytes, now: datetime) -> EmailMessage:
        """The letter. The Message-ID follows from the secret, so that no mailbox drops a letter with a newer token.

        Raises ValueError or MessageError for an address that no letter can have.
        """
        style = STYLES[notice.kind]
        link = self._link_url + style.page
        values = {"link": link}
        if style.life is not None:
            token = encode_mailed_token(recipient.user_id, secret)
            # Behind the `#`, which browsers do not send: the token gets into no server's log.
            values = {"link": f"{link}#{quote(token)}", "token": token, "life": _in_words(style.life)}
        letter = EmailMessage(policy=SMTP)
        letter["From"] = self._from
        # In parts, so that it is quoted where necessary: some addresses in use violate RFC 5322.
        local_part, _, domain = recipient.email.rpartition("@")
        letter["To"] = Address(username=local_part, domain=domain)
        letter["Subject"] = style.subject
        letter["Date"] = format_datetime(now)
        letter["Message-ID"] = f"<{notice.id}.{hashlib.sha256(secret).hexdigest()[:16]}@{self._from.domain}>"
        letter["Auto-Submitted"] = "auto-generated"  # RFC 3834: no holiday replies to a machine
        letter.set_content(_template(f"{notice.kind.value}.txt").substitute(values), cte="7bit")
        page = _template("page.html").substitute(
            subject=style.subject, body=_template(f"{notice.kind.value}.html").substitute(values)
        )
        letter.add_alternative(page, subtype="html", cte="7bit")
        return letter


@cache
def _template(name: str) -> Template:
    return Template((resources.files(__package__) / "templates" / name).read_text(encoding="ascii"))


def _in_words(life: timedelta) -> str:
    minutes = int(life.total_seconds()) // 60
    if minutes < 120:
        return f"{minutes} minutes"
    hours = minutes // 60
    return f"{hours} hours" if hours < 48 else f"{hours // 24} days"
