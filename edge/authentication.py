"""Who asks: the buyer behind a bearer token, for the routes beside the order path (which verifies in its own compiled step)."""

from __future__ import annotations

from uuid import UUID

from domain.problems import Problem
from edge.clock import RedisClock
from edge.problems import Answer, refuse
from edge.routing import Request
from hotpath import tokens

HEADER_REPEATED_DETAIL = "Authorization, Idempotency-Key and Content-Type may be given once only"
TOKEN_ENDED_DETAIL = "The session was ended; log in again"
_REFUSALS = {
    tokens.TOKEN_MISSING: refuse(Problem.TOKEN_MISSING),
    tokens.TOKEN_INVALID: refuse(Problem.TOKEN_INVALID),
    tokens.TOKEN_EXPIRED: refuse(Problem.TOKEN_EXPIRED),
    tokens.TOKEN_ENDED: refuse(Problem.TOKEN_INVALID, TOKEN_ENDED_DETAIL),
}


class Authentication:
    """Verifies buyers' tokens against a key ring, by Redis' clock as the order path does."""

    def __init__(self, ring: tokens.KeyRing, clock: RedisClock) -> None:
        self._ring = ring
        self._clock = clock

    def buyer(self, request: Request) -> UUID | Answer:
        """The user id of the token's holder, or the 401 to answer with."""
        values = request.headers.get_all("authorization")
        if len(values) > 1:
            return refuse(Problem.MALFORMED_REQUEST, HEADER_REPEATED_DETAIL)
        claims = self._ring.authorize(values[0] if values else None, self._clock.now_ms() // 1000)
        if isinstance(claims, int):
            return _REFUSALS[claims]
        return UUID(bytes=claims.user_id)
