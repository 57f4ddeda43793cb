"""`Retry-After` of servers that a user named."""

from __future__ import annotations

import pytest

from runtime.outbound.answers import RETRY_AFTER_S_MAX, retry_after_s


@pytest.mark.parametrize(
    "value",
    [
        b"1 Jan 2026 00:00:00 +99999999999999999999",
        b"1 Jan 2026 " + b"9" * 30 + b":00:00 GMT",
        b"",
        b"-3",
        b"\xb2",
        b"nan",
    ],
)
def test_an_absurd_retry_after_counts_as_none(value: bytes) -> None:
    assert retry_after_s([(b"Retry-After", value)], now_s=1.7e9) == 0.0


def test_retry_after_is_bounded() -> None:
    for value in (b"9" * 5000, b"Fri, 31 Dec 2100 23:59:59 GMT"):
        assert retry_after_s([(b"retry-after", value)], now_s=1.7e9) == RETRY_AFTER_S_MAX
