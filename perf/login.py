"""Logins by the clock, password hash included, on a stack with everything running.

    python -m perf.login [--rate 10] [--seconds 20] [--users 20] [--save] [--json] [--gate]

Login i is due i / rate seconds after the start, whatever the answers do, and its latency counts from then: what a backoffice
that falls behind makes others wait is in it. Every login must succeed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from devstack.demo.rehearsal import own_stack
from devstack.shop import call
from perf.results import Figure, Target, add_options, conclude, progress

WARM_UP_S = 3.0
P95_MS_MAX = 100.0
LATENESS_P95_MS_MAX = 5.0  # of the sending: later, and the schedule was not kept
CLIENTS = 16  # connections; more logins than that at once wait, and their waiting counts
ANSWER_S_MAX = 30.0
METHOD = (
    "Open loop of 16 keep-alive connections against the backoffice of a whole embedded stack, accounts in turn: login i is due "
    "i / rate seconds after the start, latency from when it was due to its 200. A login verifies an argon2id hash (19 MiB, two "
    "passes), counts attempts in Redis and begins a refresh family in its shard. Client and servers share the machine."
)


class LoginFailed(Exception):
    """A login was not answered 200: what was measured is no figure."""


@dataclass(slots=True)
class Course:
    """Latency of each login from when it was due, and how late it was sent; milliseconds."""

    latency_ms: list[float] = field(default_factory=list)
    lateness_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def main() -> int:
    options = _options()
    with progress() as say, own_stack(say, name="perf") as (stack, _):
        say(f"registering {options.users} accounts")
        logins = register(stack.backoffice_url, users=options.users)
        say("warming up")
        run(stack.backoffice_url, logins, rate=options.rate, seconds=min(WARM_UP_S, options.seconds))
        say(f"{options.rate:g} logins a second for {options.seconds:g} s")
        course = run(stack.backoffice_url, logins, rate=options.rate, seconds=options.seconds)
    result: dict[str, Any] = {
        "logins": len(course.latency_ms),
        "latency_ms": percentiles(course.latency_ms),
        "lateness_ms": percentiles(course.lateness_ms),
    }
    targets = [
        Target("p95 from when a login was due", result["latency_ms"]["p95"], "ms", most=P95_MS_MAX),
        Target("p95 of the client's lateness", result["lateness_ms"]["p95"], "ms", most=LATENESS_P95_MS_MAX),
    ]
    shown = ", ".join(f"{name} {value:.1f}" for name, value in result["latency_ms"].items())
    text = [f"{result['logins']} logins, latency ms from when due: {shown}"]
    return conclude(Figure("login", METHOD, targets, result), options, text)


def register(url: str, *, users: int) -> list[bytes]:
    """Accounts of their own; the body of a login for each."""
    logins = []
    for _ in range(users):
        login = {"email": f"{secrets.token_hex(8)}@perf.example", "password": secrets.token_urlsafe(16)}
        call("POST", f"{url}/v1/auth/register", body={**login, "name": "Perf"})
        logins.append(json.dumps(login).encode())
    return logins


def run(url: str, logins: Sequence[bytes], *, rate: float, seconds: float) -> Course:
    """One schedule to its end. LoginFailed unless every login was answered 200."""
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
            failure = _log_in(connection, logins[number % len(logins)])
            answered_at = time.monotonic()
            with lock:
                course.latency_ms.append((answered_at - due_at) * 1000)
                course.lateness_ms.append((sent_at - due_at) * 1000)
                if failure is not None:
                    course.failures.append(failure)
        connection.close()

    _together(work, count=CLIENTS)
    if course.failures:
        raise LoginFailed(f"{len(course.failures)} of {len(course.latency_ms)} logins failed: {course.failures[0]}")
    return course


def _together(work: Callable[[], None], *, count: int) -> None:
    threads = [threading.Thread(target=work, name=f"login-{place}") for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _log_in(connection: http.client.HTTPConnection, body: bytes) -> str | None:
    """One login; None for 200, else what came instead."""
    try:
        connection.request("POST", "/v1/auth/login", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    except OSError as error:
        connection.close()
        return str(error)
    # The tokens of a success are not for anybody's eyes.
    return None if answer.status == 200 else f"{answer.status} {text[:200].decode(errors='replace')}"


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """By nearest rank: the least value that so many of them do not exceed."""
    ordered = sorted(values)
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: ordered[math.ceil(share * len(ordered)) - 1] for name, share in shares.items()}


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m perf.login", description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=float, default=10.0, help="logins due a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the schedule")
    parser.add_argument("--users", type=int, default=20, help="accounts that log in, in turn")
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
