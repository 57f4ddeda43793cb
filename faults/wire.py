"""One HTTP/1.1 connection to an edge, and the interpretation of its answers. No retries: `buyers` decides on those."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from domain.problems import Problem
from faults.history import Attempt, Ending, Told

ANSWER_S_MAX = 8.0
CONNECT_S_MAX = 3.0
HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 1024 * 1024
ACCEPTED = 202
WAITS = frozenset({429, 503})  # their answers need Retry-After
# The edge has done nothing, and the same request may be sent again.
LATER = frozenset({Problem.OVERLOADED.value, Problem.DEPENDENCY_UNAVAILABLE.value})


@dataclass(frozen=True, slots=True)
class Answer:
    """A parsed answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class NotHttp(Exception):
    """The received bytes are not an HTTP/1.1 answer with a length."""


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Read the next answer of a connection. Raises NotHttp, IncompleteReadError, OSError."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(first.split(" ", 2)[1])
        length = int(headers.get("content-length", "0"))
    except (ValueError, IndexError, asyncio.LimitOverrunError) as error:
        raise NotHttp(str(error)) from error
    if length > BODY_BYTES_MAX:
        raise NotHttp(f"a body of {length} bytes")
    return Answer(status, headers, await reader.readexactly(length))


def order_request(host: str, path: str, *, token: str, key: str | None, body: bytes) -> bytes:
    """The bytes of a POST."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
    if key is not None:
        head += f"Idempotency-Key: {key}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("ascii") + body


def judge(answer: Answer, attempt: Attempt) -> None:
    """Record an answer about an order in the attempt: outcome, order, and defects of the answer itself."""
    document = _read(answer, attempt)
    if 200 <= answer.status < 300:
        attempt.ending = Ending.OK
        try:
            attempt.order_id, attempt.told = UUID(document["order_id"]), _told(document)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            attempt.fault = f"{answer.status} without an order: {error!r}"
        if answer.status == ACCEPTED and answer.headers.get("location") != f"/v1/orders/{attempt.order_id}":
            attempt.fault = attempt.fault or f"{answer.status} with the Location {answer.headers.get('location')}"
        attempt.replayed = answer.headers.get("idempotency-replayed") == "true"
        attempt.body_hash = hash(answer.body)
        return
    _judge_problem(answer, document, attempt)


def judge_payment(answer: Answer, attempt: Attempt) -> None:
    """Record an answer to a request for payment: outcome, the provider's page, and defects of the answer itself."""
    document = _read(answer, attempt)
    if not 200 <= answer.status < 300:
        _judge_problem(answer, document, attempt)
        return
    attempt.ending = Ending.OK
    url = document.get("payment_url") if isinstance(document, dict) else None
    if isinstance(url, str):
        attempt.payment_url = url
    else:
        attempt.fault = f"{answer.status} without a payment_url"


def _read(answer: Answer, attempt: Attempt) -> dict[str, Any]:
    attempt.status = answer.status
    try:
        document: dict[str, Any] = json.loads(answer.body or b"{}")
    except ValueError:
        attempt.fault = f"{answer.status} with a body that is not JSON"
        return {}
    return document


def _judge_problem(answer: Answer, document: dict[str, Any], attempt: Attempt) -> None:
    attempt.code = str(document.get("code", "")) if isinstance(document, dict) else ""
    attempt.ending = Ending.REFUSED
    try:
        problem = Problem(attempt.code)
    except ValueError:
        attempt.fault = attempt.fault or f"{answer.status} with the unknown code {attempt.code!r}"
        attempt.ending = Ending.UNKNOWN
        return
    if answer.headers.get("content-type", "").partition(";")[0] != "application/problem+json":
        attempt.fault = f"{attempt.code} as {answer.headers.get('content-type')}"
    elif problem.status != answer.status:
        attempt.fault = f"{attempt.code} with status {answer.status}"
    elif (document.get("status"), document.get("type")) != (answer.status, f"/problems/{attempt.code}"):
        attempt.fault = f"{attempt.code} with the members {document.get('status')}, {document.get('type')}"
    elif answer.status in WAITS and not answer.headers.get("retry-after", "").isdigit():
        attempt.fault = f"{attempt.code} without Retry-After"
    elif problem is Problem.INTERNAL_ERROR:
        attempt.fault = "internal_error"
    if problem in (Problem.OUTCOME_UNKNOWN, Problem.INTERNAL_ERROR):
        attempt.ending = Ending.UNKNOWN


def _told(document: dict[str, Any]) -> Told:
    return Told(
        sale_id=UUID(document["sale_id"]),
        status=document["status"],
        lines=tuple((line["sku"], line["quantity"], line["unit_price_minor"]) for line in document["items"]),
        total_minor=document["total_minor"],
        currency=document["currency"],
        reserved_at_ms=_unix_ms(document["reserved_at"]),
        expires_at_ms=_unix_ms(document["expires_at"]),
    )


def _unix_ms(time: str) -> int:
    return round(datetime.fromisoformat(time).timestamp() * 1000)


@dataclass(eq=False, slots=True)
class Wire:
    """A keep-alive connection that is opened on demand and reopened when it broke.

    `urls` are edges, as behind a load balancer: when one refuses the connection, the next one is tried. When the list
    changes, connections are spread again. `turn` is the index of the edge in use.
    """

    urls: list[str]
    turn: int = 0
    spread: int = 0  # number of edges when it connected
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None

    @property
    def host(self) -> str:
        """Host and port."""
        return urlsplit(self.urls[self.turn % len(self.urls)]).netloc

    async def ask(self, request: bytes, judge_: Callable[[Answer, Attempt], None] = judge) -> Attempt:
        """Send the request once. Never raises for what the edge or the network does."""
        invoked_at = time.monotonic()
        attempt = Attempt(invoked_at, invoked_at, Ending.UNKNOWN)
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                reader, writer = await self._connection()
                attempt.invoked_at = time.monotonic()
                writer.write(request)
                answer = await read_answer(reader)
            judge_(answer, attempt)
            if answer.headers.get("connection", "").lower() == "close":
                self.close()
                self.turn += 1  # a draining edge is not ready: a load balancer sends no requests there
        except TimeoutError:
            attempt.code, attempt.fault = "no answer", f"no answer within {ANSWER_S_MAX:.0f} s"
            self.close()
        except NotHttp as error:
            attempt.fault = f"not HTTP: {error}"
            self.close()
        except (OSError, asyncio.IncompleteReadError) as error:
            attempt.code = f"broken: {type(error).__name__}"
            self.close()
        attempt.returned_at = time.monotonic()
        return attempt

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.reader is None or self.writer is None or self.reader.at_eof() or self.spread != len(self.urls):
            self.close()
            self.spread = len(self.urls)
            for _ in self.urls[1:]:
                try:
                    return await self._connect()
                except ConnectionRefusedError:
                    self.turn += 1
            return await self._connect()
        return self.reader, self.writer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.host.partition(":")
        async with asyncio.timeout(CONNECT_S_MAX):
            self.reader, self.writer = await asyncio.open_connection(host, int(port), limit=HEAD_BYTES_MAX)
        return self.reader, self.writer

    def close(self) -> None:
        """Close the connection."""
        if self.writer is not None:
            self.writer.transport.abort()
        self.reader = self.writer = None
