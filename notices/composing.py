"""The words of a notice: subject, text and HTML of its letter, and its web push.

Letters contain no name and no other text of an account: a person who registers a stranger's address must not get
words of their own into the stranger's mailbox. SKUs are the shop's data, and are escaped.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from string import Template
from typing import Final
from urllib.parse import quote

from domain.mailed_tokens import EMAIL_UNDO_LIFE, PASSWORD_RESET_LIFE, VERIFY_EMAIL_LIFE
from domain.notices import ORDER_KINDS, Notice, NoticeKind, NoticeLine, OrderNews
from notices.language import Language, fill, page

ORDER_PAGE: Final = "/shop/orders/{order_id}"


@dataclass(frozen=True, slots=True)
class Style:
    """`page` is the path of a kind's link. `life` is the life of its token, None for no token."""

    page: str
    life: timedelta | None = None


STYLES: Final = {
    NoticeKind.VERIFY_EMAIL: Style("/account/verify-email", VERIFY_EMAIL_LIFE),
    NoticeKind.PASSWORD_RESET: Style("/account/password-reset", PASSWORD_RESET_LIFE),
    NoticeKind.PASSWORD_CHANGED: Style("/account/password-reset"),
    NoticeKind.EMAIL_CHANGED: Style("/account/undo-email-change", EMAIL_UNDO_LIFE),
    NoticeKind.WEBHOOK_DISABLED: Style("/"),
    **{kind: Style(ORDER_PAGE) for kind in ORDER_KINDS},
}


@dataclass(frozen=True, slots=True)
class Words:
    """A letter without its envelope."""

    subject: str
    text: str
    html: str


@dataclass(frozen=True, slots=True)
class PushWords:
    """The texts that a browser shows, and the page that it opens."""

    title: str
    body: str
    url: str


class Composer:
    """Writes notices of one installation."""

    def __init__(self, link_url: str) -> None:
        """`link_url` is the beginning of links."""
        self._link_url = link_url.rstrip("/")

    def letter(self, notice: Notice, language: Language, *, token: str | None = None) -> Words:
        """The letter. A kind with a token in its link needs `token`; others have none."""
        style = STYLES[notice.kind]
        assert (token is None) == (style.life is None)
        values = {"link": self._link(notice)}
        lines = ""
        if style.life is not None and token is not None:
            # Behind the `#`, which browsers do not send: the token gets into no server's log.
            values = {
                "link": f"{values['link']}#{quote(token)}",
                "token": token,
                "life": language.duration(style.life),
            }
        if notice.order is not None:
            values |= _order_values(notice.order, language)
            lines = _rows(notice.order, language)
        subject = str(language.words["subjects"][notice.kind])
        body = fill(language.template(f"{notice.kind}.html"), values, markup={"lines": lines})
        whole = fill(page(), {"language": language.code, "subject": subject}, markup={"body": body})
        return Words(subject, fill(language.template(f"{notice.kind}.txt"), values), whole)

    def push(self, notice: Notice, language: Language) -> PushWords:
        """The web push of a notice of an order."""
        assert notice.order is not None
        words: Mapping[str, str] = language.words["pushes"][notice.kind]
        values = _order_values(notice.order, language)
        title, body = (Template(words[part]).substitute(values) for part in ("title", "body"))
        return PushWords(title, body, self._link(notice))

    def _link(self, notice: Notice) -> str:
        path = STYLES[notice.kind].page
        return self._link_url + (path if notice.order is None else path.format(order_id=notice.order.order_id))


def _order_values(order: OrderNews, language: Language) -> dict[str, str]:
    words = language.words
    return {
        "order": str(order.order_id),
        "amount": language.amount(order.amount_minor, order.currency),
        "lines": "\n".join(
            f"{line.quantity} x {line.sku}: {_sum(line, order, language)}" for line in order.lines
        ),
        "until": "" if order.expires_at_ms is None else language.moment(order.expires_at_ms),
        "reason": "" if order.reason is None else words["reasons"][order.reason],
    }  # fmt: skip


def _rows(order: OrderNews, language: Language) -> str:
    """The lines as rows of an HTML table."""
    return "\n".join(
        f"<tr><td>{line.quantity} x {html.escape(line.sku)}</td>"
        f'<td style="text-align: right; padding-left: 2em">{html.escape(_sum(line, order, language))}</td></tr>'
        for line in order.lines
    )


def _sum(line: NoticeLine, order: OrderNews, language: Language) -> str:
    return language.amount(line.quantity * line.unit_price_minor, order.currency)
