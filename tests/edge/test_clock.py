"""A worker judges tokens by Redis' clock, even when its own is wrong (end to end: fault edge-clock-skewed)."""

from __future__ import annotations

import time
from uuid import UUID, uuid4

import pytest

from edge.authentication import Authentication
from edge.clock import RedisClock
from edge.routing import Request
from hotpath.tokens import KeyRing
from runtime.process.settings import load_settings
from runtime.tokens.keys import TokenKeys, mint_buyer_token

KEYS = TokenKeys("k1", {"k1": bytes(range(32))})


class _Headers(dict[str, str]):
    """Like Granian's headers: a name may have several values."""

    def get_all(self, key: str) -> list[str]:
        return [self[key]] if key in self else []


@pytest.mark.parametrize(
    ("ahead_s", "life_s", "valid"), [(0, 120, True), (300, 120, True), (-300, -120, False), (0, -1, False)]
)
def test_a_worker_with_a_wrong_clock_judges_tokens_rightly(ahead_s: int, life_s: int, valid: bool) -> None:
    """`ahead_s`: how far this worker's clock is ahead; the clocks of Redis and the issuer are right."""
    issuer = load_settings({}).token_issuer
    now = time.time()
    true_now_s = int(now) - ahead_s
    user = uuid4()
    token = mint_buyer_token(KEYS, user_id=user, issuer=issuer, ttl_s=600, now_s=true_now_s + life_s - 600)
    clock = RedisClock()
    clock.measured(redis_s=true_now_s, redis_us=0, asked_at=now, answered_at=now)
    assert round(clock.offset_ms / 1000) == pytest.approx(-ahead_s, abs=1)
    authentication = Authentication(KeyRing(KEYS.keys, issuer=issuer), clock, None)
    request = Request("GET", "/", "", _Headers(authorization=f"Bearer {token}"), {}, ())  # type: ignore[arg-type]
    answer = authentication.buyer(request)
    assert isinstance(answer, UUID) == valid
