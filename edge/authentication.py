"""Who asks: the buyer behind a bearer token, for the routes beside the order path (which verifies in its own compiled step)."""

from __future__ import annotations

from uuid import UUID

from domain.problems import Problem
from edge.clock import RedisClock
from edge.problems import Answer, refuse
from edge.routing import Request
from hotpath import tokens

_PROBLEMS = {
    tokens.TOKEN_MISSING: Problem.TOKEN_MISSING,
    tokens.TOKEN_INVALID: Problem.TOKEN_INVALID,
    tokens.TOKEN_EXPIRED: Problem.TOKEN_EXPIRED,
}


class Authentication:
    """Verifies buyers' tokens against a key ring, by Redis' clock as the order path does."""

    def __init__(self, ring: tokens.KeyRing, clock: RedisClock) -> None:
        self._ring = ring
        self._clock = clock

    def buyer(self, request: Request) -> UUID | Answer:
        """The user id of the token's holder, or the 401 to answer with."""
        claims = self._ring.authorize(request.headers.get("authorization"), self._clock.now_ms() // 1000)
        if isinstance(claims, int):
            return refuse(_PROBLEMS[claims])
        return UUID(bytes=claims.user_id)
