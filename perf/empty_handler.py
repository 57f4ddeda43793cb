"""A of the gate: the least work of an RSGI application with an order: read the body, answer with as many bytes."""

import os

ANSWER = b"{" + b" " * 298 + b"}"
HEADERS = [("content-type", "application/json"), ("location", "/v1/orders/01a204f9-84f5-8000-abca-dbe2f1077623")]

if os.environ.get("PERF_AS_THE_EDGE"):  # Granian's threads, which start after this, inherit the policy
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


async def app(scope, protocol):  # type: ignore[no-untyped-def]  # noqa: ARG001 - RSGI's signature
    """Answer 202."""
    await protocol()
    protocol.response_bytes(202, HEADERS, ANSWER)
