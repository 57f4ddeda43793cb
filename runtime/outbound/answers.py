"""Parts of an answer from a server that may be hostile: `Retry-After`, and a short readable text. Performs no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Final

RETRY_AFTER_S_MAX: Final = 24 * 3600


def retry_after_s(headers: Sequence[tuple[bytes, bytes]], *, now_s: float) -> float:
    """Seconds of `Retry-After`, which is a number or a date (RFC 9110, section 10.2.3); 0 without one."""
    text = next((value for name, value in headers if name.lower() == b"retry-after"), b"").decode("latin-1")
    if text.strip().isdecimal():
        return float(min(int(text.strip()[:9]), RETRY_AFTER_S_MAX))
    try:
        return min(max(0.0, parsedate_to_datetime(text).timestamp() - now_s), RETRY_AFTER_S_MAX)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def printable(text: bytes, *, length_max: int) -> str:
    """The text on one line, without characters that cannot be printed."""
    shown = "".join(character if character.isprintable() else " " for character in text.decode("utf-8", "replace"))
    return " ".join(shown.split())[:length_max]
