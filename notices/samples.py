"""Sample notices of every kind, for previews and tests: the same each time. Performs no I/O."""

from __future__ import annotations

from dataclasses import replace
from typing import Final
from uuid import UUID

from domain.mailed_tokens import SECRET_BYTES, encode_mailed_token
from domain.notices import ORDER_KINDS, Notice, NoticeKind, NoticeLine, OrderNews
from domain.payments import RefundReason
from notices.composing import STYLES

SAMPLE_USER: Final = UUID("01890000-0000-7000-8000-000000000001")
SAMPLE_ORDER: Final = UUID("01890000-0000-8000-8000-000000000002")
_NOTICE: Final = UUID("01890000-0000-7000-8000-000000000003")
_AT_MS: Final = 1_790_000_000_000
_NEWS: Final = OrderNews(
    SAMPLE_ORDER, _AT_MS, "EUR", 125_998, (NoticeLine("SKU-1", 2, 2_999), NoticeLine("SKU-2", 1, 120_000)), _AT_MS + 600_000
)  # fmt: skip


def sample(kind: NoticeKind, *, sku: str = "SKU-1") -> Notice:
    """A notice of the kind; `sku` is the first line's."""
    if kind not in ORDER_KINDS:
        email = "left@shop.example" if kind is NoticeKind.EMAIL_CHANGED else None
        return Notice(_NOTICE, kind, SAMPLE_USER, email)
    if kind is NoticeKind.ORDER_REFUNDED:
        news = OrderNews(SAMPLE_ORDER, _AT_MS, "EUR", 2_999, reason=RefundReason.LATE)
    else:
        news = replace(_NEWS, lines=(replace(_NEWS.lines[0], sku=sku), *_NEWS.lines[1:]))
    return Notice(_NOTICE, kind, SAMPLE_USER, order=news)


def sample_token(kind: NoticeKind) -> str | None:
    """A token that opens nothing, for kinds with one."""
    return None if STYLES[kind].life is None else encode_mailed_token(SAMPLE_USER, bytes(SECRET_BYTES))
