"""Bodies of requests: read whole, within a bound and a deadline. Granian sets neither."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from domain.problems import Problem


class Body(Protocol):
    """A body in parts, as RSGI gives it."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """An empty part is the end. After an error there is one more: a truncated body has two empty parts."""


class BodyRefused(Exception):
    """The body was not read whole."""

    def __init__(self, problem: Problem, detail: str = "") -> None:
        super().__init__(detail or problem.value)
        self.problem = problem
        self.detail = detail


class BodyTooLarge(BodyRefused):
    """More bytes than the route takes."""

    def __init__(self) -> None:
        super().__init__(Problem.BODY_TOO_LARGE)


class BodyTruncated(BodyRefused):
    """The body ended early."""

    def __init__(self) -> None:
        super().__init__(Problem.MALFORMED_REQUEST, "The body ended early")


async def read_body(body: Body, *, bytes_max: int) -> bytes:
    """The whole body. Raises BodyRefused; the caller sets the deadline.

    A body with trailers has two empty parts as well, as a truncated one: no route of the edge takes trailers.
    """
    parts, length, ends = [], 0, 0
    async for part in body:
        ends += not part
        length += len(part)
        if length > bytes_max:
            raise BodyTooLarge
        parts.append(part)
    if ends != 1:
        raise BodyTruncated
    return b"".join(parts)


async def read_within(body: Body, *, bytes_max: int, deadline_ms: int) -> bytes:
    """`read_body` with a deadline. Raises BodyRefused."""
    try:
        async with asyncio.timeout(deadline_ms / 1000):
            return await read_body(body, bytes_max=bytes_max)
    except TimeoutError:
        raise BodyRefused(Problem.REQUEST_TIMEOUT) from None
    except (BodyRefused, asyncio.CancelledError):
        raise
    except Exception as error:
        raise BodyTruncated from error  # Granian's own error for a truncated body
