"""Logins on a schedule, password hash included, on a complete stack.

    python -m perf.login [--rate 10] [--seconds 20] [--users 20] [--save] [--json] [--gate]

Login i is due i / rate seconds after the start, whether or not earlier answers came, and its latency counts from then:
it includes the waiting that a slow backoffice causes. Every login must succeed.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from typing import Any

from devstack.demo.rehearsal import own_stack
from ops.shop import call
from perf.by_clock import Request, percentiles, run
from perf.results import Figure, Target, add_options, conclude, progress

WARM_UP_S = 3.0
P95_MS_MAX = 100.0
LATENESS_P95_MS_MAX = 5.0  # of the sending; above it the schedule was not kept
CLIENTS = 16  # connections; more concurrent logins wait, and their waiting counts
METHOD = (
    "Open loop of 16 keep-alive connections against the backoffice of a complete embedded stack, accounts in turn: "
    "login i is due i / rate seconds after the start, latency from when it was due to its 200. A login verifies an "
    "argon2id hash (19 MiB, two passes), counts attempts in Redis and begins a refresh family in its shard. Client "
    "and servers share the machine."
)


def main() -> int:
    options = _options()
    with progress() as say, own_stack(say, name="perf") as (stack, _):
        say(f"registering {options.users} accounts")
        logins = register(stack.backoffice_url, users=options.users)
        say("warming up")
        run(stack.backoffice_url, logins, rate=options.rate, seconds=min(WARM_UP_S, options.seconds), clients=CLIENTS)
        say(f"{options.rate:g} logins a second for {options.seconds:g} s")
        course = run(stack.backoffice_url, logins, rate=options.rate, seconds=options.seconds, clients=CLIENTS)
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


def register(url: str, *, users: int) -> list[Request]:
    """Register accounts. Returns a login for each."""
    logins = []
    for _ in range(users):
        login = {"email": f"{secrets.token_hex(8)}@perf.example", "password": secrets.token_urlsafe(16)}
        call("POST", f"{url}/v1/auth/register", body={**login, "name": "Perf"})
        body = json.dumps(login).encode()
        logins.append(Request("POST", "/v1/auth/login", {"Content-Type": "application/json"}, body))
    return logins


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
