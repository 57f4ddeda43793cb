"""The buyer of a request, from its bearer token. For all routes but orders, whose tokens compiled code verifies."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from domain.problems import Problem
from edge.clock import RedisClock
from edge.problems import Answer, refuse
from edge.routing import Request
from hotpath import tokens
from hotpath.counters import Verdict
from runtime.tokens.outside_tokens import Fault, OutsideTokens, OutsideUser

HEADER_REPEATED_DETAIL: Final = "Send Authorization, Idempotency-Key and Content-Type at most once each"
TOKEN_ENDED_DETAIL: Final = "The session was ended; log in again"
_REFUSALS: Final[dict[int, Answer]] = {
    tokens.TOKEN_MISSING: refuse(Problem.TOKEN_MISSING),
    tokens.TOKEN_INVALID: refuse(Problem.TOKEN_INVALID),
    tokens.TOKEN_EXPIRED: refuse(Problem.TOKEN_EXPIRED),
    tokens.TOKEN_ENDED: refuse(Problem.TOKEN_INVALID, TOKEN_ENDED_DETAIL),
    Verdict.UNAVAILABLE: refuse(Problem.DEPENDENCY_UNAVAILABLE),
}
_VERDICTS: Final[dict[Fault, int]] = {
    Fault.INVALID: tokens.TOKEN_INVALID,
    Fault.EXPIRED: tokens.TOKEN_EXPIRED,
    Fault.ENDED: tokens.TOKEN_ENDED,
    Fault.UNAVAILABLE: Verdict.UNAVAILABLE,
}


class OutsideBuyers:
    """Buyers with tokens of outside issuers, in the terms of the order path. The edge knows no other role."""

    def __init__(self, outside: OutsideTokens) -> None:
        self._outside = outside

    def verify(self, token: str, now_s: int) -> bytes | int:
        """16 bytes of the user's id, or a verdict. Never waits."""
        found = self._outside.verify(token, now_s)
        if isinstance(found, OutsideUser):
            return found.user_id.bytes if found.is_buyer else tokens.TOKEN_INVALID
        return _VERDICTS[found]


class Authentication:
    """Verifies buyers' tokens against a key ring and Redis time. `outside` None: no outside issuers."""

    def __init__(self, ring: tokens.KeyRing, clock: RedisClock, outside: OutsideBuyers | None) -> None:
        self._ring = ring
        self._clock = clock
        self._outside = outside

    def buyer(self, request: Request) -> UUID | Answer:
        """The user id in the token, or the problem to answer."""
        values = request.headers.get_all("authorization")
        if len(values) > 1 or (values and request.headers.get("authorization") is None):
            return refuse(Problem.MALFORMED_REQUEST, HEADER_REPEATED_DETAIL)
        authorization, now_s = values[0] if values else None, self._clock.now_ms() // 1000
        found = self._ring.authorize(authorization, now_s)
        if not isinstance(found, int):
            return UUID(bytes=found.user_id)
        if found == tokens.TOKEN_INVALID and self._outside is not None and authorization is not None:
            outside = self._outside.verify(authorization[7:].strip(" "), now_s)
            if isinstance(outside, bytes):
                return UUID(bytes=outside)
            found = outside
        return _REFUSALS[found]
