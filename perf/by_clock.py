"""Sends requests on a schedule over keep-alive connections of one process. For some hundred requests a second.

Latency counts from when a request was due, so it includes the waiting behind a slow answer. Orders have their own
driver (`perf.driver`).
"""

from __future__ import annotations

import http.client
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

ANSWER_S_MAX = 30.0


class RequestsFailed(Exception):
    """A request did not get its expected answer, so the measurement is no figure."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request, and the status that its answer must have."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes | None = None
    status: int = 200


@dataclass(slots=True)
class Course:
    """Per request, in the order of answers: latency from when it was due, and lateness of sending; milliseconds."""

    latency_ms: list[float] = field(default_factory=list)
    lateness_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def run(url: str, requests: Sequence[Request], *, rate: float, seconds: float, clients: int) -> Course:
    """Run one schedule to its end over `clients` connections: request i is due i / rate seconds after the start.

    Raises RequestsFailed unless every answer has its expected status.
    """
    course = Course()
    due = iter(range(round(rate * seconds)))
    started = time.monotonic() + 0.05
    take, lock = threading.Lock(), threading.Lock()

    def next_due() -> int | None:
        with take:
            return next(due, None)

    def work() -> None:
        target = urlsplit(url)
        assert target.hostname is not None
        connection = http.client.HTTPConnection(target.hostname, target.port, timeout=ANSWER_S_MAX)
        for number in iter(next_due, None):
            due_at = started + number / rate
            time.sleep(max(0.0, due_at - time.monotonic()))
            sent_at = time.monotonic()
            failure = _exchange(connection, requests[number % len(requests)])
            answered_at = time.monotonic()
            with lock:
                course.latency_ms.append((answered_at - due_at) * 1000)
                course.lateness_ms.append((sent_at - due_at) * 1000)
                if failure is not None:
                    course.failures.append(failure)
        connection.close()

    threads = [threading.Thread(target=work, name=f"client-{place}") for place in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if course.failures:
        raise RequestsFailed(f"{len(course.failures)} of {len(course.latency_ms)} failed: {course.failures[0]}")
    return course


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """By nearest rank: the smallest value that reaches the share."""
    ordered = sorted(values)
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: ordered[math.ceil(share * len(ordered)) - 1] for name, share in shares.items()}


def _exchange(connection: http.client.HTTPConnection, request: Request) -> str | None:
    """Send one request. Returns None for the expected status, else a description of the answer."""
    try:
        connection.request(request.method, request.path, request.body, request.headers)
        answer = connection.getresponse()
        text = answer.read()
    except OSError as error:
        connection.close()
        return str(error)
    # The body of a success may hold tokens, so it is not shown.
    return None if answer.status == request.status else f"{answer.status} {text[:200].decode(errors='replace')}"
