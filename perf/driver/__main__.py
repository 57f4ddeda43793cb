"""Sends orders to an edge and counts the answers: `python -m perf.driver --help`.

Prints a line of JSON with the counts so far about every 0.2 s, and a last one with `"final": true` and all results. A
line `stop` on standard input, or its end, ends the run; open orders still get their answers. With `--rate` it runs an
open loop of `--seconds-max`: orders are due by the clock, independent of the answers.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import sys
import time
import urllib.parse
from pathlib import Path
from typing import Any

from perf.driver.histogram import percentiles_ms, sparse
from perf.driver.loop import Loop

PROGRESS_S = 0.2
FINISH_S_MAX = 30.0


def main() -> int:
    """Exit status 1 if an order has no answer at the end."""
    options = _arguments()
    tokens = [line.rpartition("\t")[2].encode() for line in options.tokens.read_text(encoding="ascii").splitlines()]
    url = urllib.parse.urlsplit(options.url)
    record_fd = os.open(options.orders, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    loop = Loop(
        host=socket.gethostbyname(url.hostname or ""),
        port=url.port or 80,
        paths=[f"/v1/sales/{sale}/orders" for sale in options.sale],
        tokens=tokens,
        bodies=[json.dumps({"items": [{"sku": sku, "quantity": 1}]}).encode() for sku in options.sku],
        connections=options.connections,
        prefix=options.key_prefix,
        record_fd=record_fd,
    )
    if options.rate:
        loop.keep_schedule(options.rate, round(options.rate * options.seconds_max))
    cpu_before_s = time.process_time()
    end_ns = loop.started_ns + int(options.seconds_max * 1e9)
    elapsed_ns = 0
    while loop.started_ns + elapsed_ns < end_ns and not _told_to_stop():
        loop.run(PROGRESS_S)
        elapsed_ns += int(PROGRESS_S * 1e9)
        _print({"accepted": loop.accepted, "refused": loop.refused, "retries": loop.retries})
    still_open = loop.finish(FINISH_S_MAX)
    os.close(record_fd)
    summary = _summary(loop, still_open)
    summary["cpu_s"] = time.process_time() - cpu_before_s
    if options.rate:
        summary["open_loop"] = {
            "rate": options.rate,
            "orders": round(options.rate * options.seconds_max),
            "lateness": sparse(loop.lateness_seen()),
            "found_none_idle": loop.found_none_idle,
        }
    _print(summary)
    return 1 if still_open or loop.given_up else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.driver", description=__doc__.split("\n")[0])
    parser.add_argument("--url", required=True, help="the edge, http://host:port")
    parser.add_argument("--sale", required=True, action="append", help="id of a sale; may be given several times")
    parser.add_argument("--sku", required=True, action="append", help="SKU to order; may be given several times")
    parser.add_argument("--tokens", required=True, type=Path, help="file of lines `user_id<TAB>token`")
    parser.add_argument("--orders", required=True, type=Path, help="file to which each 202 adds a line")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--key-prefix", default="load", help="first part of every Idempotency-Key")
    parser.add_argument("--seconds-max", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=0.0, help="orders due a second (open loop); 0: closed loop")
    return parser.parse_args()


def _told_to_stop() -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(readable) and sys.stdin.readline() in ("", "stop\n")


def _summary(loop: Loop, still_open: int) -> dict[str, Any]:
    accepted_latency, refused_latency = map(sparse, loop.latencies())
    accepted_bins, refused_bins = loop.timeline()
    return {
        "final": True,
        "started_ns": loop.started_ns,
        "sent": loop.next_order,
        "accepted": loop.accepted,
        "refused": loop.refused,
        "replayed": loop.replayed,
        "retries": loop.retries,
        "transport_errors": loop.transport_errors,
        "given_up": loop.given_up,
        "unanswered": still_open,
        "answers": [[status, code, count] for (status, code), count in sorted(loop.codes_seen().items())],
        "accepted_ms": percentiles_ms(accepted_latency),
        "refused_ms": percentiles_ms(refused_latency),
        "accepted_latency": accepted_latency,
        "accepted_per_100ms": accepted_bins,
        "refused_per_100ms": refused_bins,
    }


def _print(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
