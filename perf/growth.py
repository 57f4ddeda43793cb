"""Memory growth of an edge worker: resident and anonymous pages over two million requests of every kind.

    python -m perf.growth [--requests 2000000] [--every 20000] [--save] [--json] [--gate]

Of a hundred requests, 40 are accepted orders, 20 repeats of them, 25 orders for a sold-out SKU, 8 bad bodies, 7 bad
tokens; so 85 pass through token, validation, batch and Redis. The first quarter is warm-up; a line is fitted to the
samples of the rest (least squares). The memory counts as constant when the slope of the line, less two standard
errors, is below the bound, which is about a byte per request.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from perf.driver.loop import Loop
from perf.load import LoadFailed, write_tokens
from perf.processes import memory_bytes
from perf.results import Figure, Target, add_options, conclude, progress
from perf.stage import UNITS, Stage, edge_on_redis

USERS = 100_000
SKU, SOLD_OUT_SKU = "SKU-1", "SKU-GONE"
# Of a hundred requests. Repeats are fewer than accepted orders and follow them: each has an order to repeat.
SHARES = {"accepted": 40, "replays": 20, "sold out": 25, "bad bodies": 8, "bad tokens": 7}
WHOLE_WAY_SHARE_MIN = 0.6
CONNECTIONS = 64  # of each kind
MINUTES_MAX = 20.0  # a quiet machine takes two or three
WARM_UP_SHARE = 0.25
SLOPE_MIB_MAX = 1.0  # MiB per million requests: about a byte per request
MIB = 1 << 20
METHOD = (
    "Closed loops of the bundled driver, one per kind, in turn: of 100 requests 40 accepted, 20 repeated, 25 sold "
    "out, 8 bad bodies, 7 bad tokens, on an edge with one worker and a Redis that syncs before each answer. Memory of "
    "the worker process from /proc/<pid>/smaps_rollup. Slope by least squares after the first quarter."
)


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line through points: `slope` and its standard error."""

    slope: float
    error: float


def fit(points: Sequence[tuple[float, float]]) -> Line:
    """Least squares through at least three points with different x.

    Source: https://en.wikipedia.org/wiki/Simple_linear_regression
    """
    count = len(points)
    assert count >= 3
    x_mean = sum(x for x, _ in points) / count
    y_mean = sum(y for _, y in points) / count
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    slope = sum((x - x_mean) * (y - y_mean) for x, y in points) / spread
    rest = sum((y - y_mean - slope * (x - x_mean)) ** 2 for x, y in points)
    return Line(slope, math.sqrt(rest / (count - 2) / spread))


def main() -> int:
    options = _options()
    # At full speed, so many users would meet the rate limit, which is another kind of answer.
    with progress() as say, edge_on_redis({"FLASHSALE_USER_RATE": "1000", "FLASHSALE_USER_BURST": "10000"}) as stage:
        result = measure(stage, requests=options.requests, every=options.every, say=say)
    targets = [
        Target(f"{kind} memory, growth a million requests, less two standard errors", slope, "MiB", most=SLOPE_MIB_MAX)
        for kind, slope in result["growth_mib_per_million_at_least"].items()
    ]
    share = result["whole_way"] / result["requests"]
    targets.append(Target("share that went through batch and Redis", share, "of 1", least=WHOLE_WAY_SHARE_MIN))
    return conclude(Figure("growth", METHOD, targets, result), options, as_text(result))


def measure(stage: Stage, *, requests: int, every: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Send all kinds in turn until this many requests are answered. Returns samples, slopes and counts of answers.

    Samples every `every` requests (a multiple of 100). Raises LoadFailed for unexpected answers, and when it takes too
    long.
    """
    assert every % 100 == 0
    loops = make_loops(stage, stage.publish({SKU: UNITS, SOLD_OUT_SKU: 0}))
    pid = stage.worker_pid
    samples: list[dict[str, float]] = []
    deadline = time.monotonic() + MINUTES_MAX * 60
    while len(samples) * every < requests or len(samples) < 8:
        for kind, loop in loops.items():
            if loop.run_orders(every * SHARES[kind] // 100, deadline - time.monotonic()) or loop.given_up:
                raise LoadFailed(f"{kind}: requests without an answer, or {MINUTES_MAX:.0f} minutes are over")
        memory = {kind: size / MIB for kind, size in memory_bytes(pid).items()}
        samples.append({"requests": (len(samples) + 1) * every, **memory})
        say(f"{samples[-1]['requests']:,} of {requests:,} requests, {memory['resident']:.1f} MiB")
    answered = sum(loop.accepted + loop.refused for loop in loops.values())
    accepted, replays, sold_out = (loops[kind] for kind in ("accepted", "replays", "sold out"))
    if accepted.refused or replays.refused or replays.replayed != replays.accepted or sold_out.accepted:
        raise LoadFailed(f"unexpected answers: {_answers(loops)}")
    kept = [sample for sample in samples if sample["requests"] >= answered * WARM_UP_SHARE]
    lines = {kind: fit([(s["requests"] / 1e6, s[kind]) for s in kept]) for kind in ("resident", "anonymous")}
    return {
        "requests": answered,
        "whole_way": accepted.accepted + replays.replayed + sold_out.codes_seen().get((409, "sold_out"), 0),
        "answers": _answers(loops),
        "replayed": replays.replayed,
        "growth_mib_per_million": {kind: line.slope for kind, line in lines.items()},
        "standard_error": {kind: line.error for kind, line in lines.items()},
        "growth_mib_per_million_at_least": {kind: line.slope - 2 * line.error for kind, line in lines.items()},
        "samples": samples,
    }


def _answers(loops: dict[str, Loop]) -> dict[str, dict[str, int]]:
    return {
        kind: {f"{status} {code}".strip(): count for (status, code), count in sorted(loop.codes_seen().items())}
        for kind, loop in loops.items()
    }


def make_loops(stage: Stage, sale_id: UUID) -> dict[str, Loop]:
    """One closed loop per kind. Repeats have the keys, users and bodies of the accepted orders, from the first on."""
    tokens_file = stage.folder / "tokens"
    write_tokens(tokens_file, stage.keys_file, users=USERS)
    tokens = [line.rpartition("\t")[2].encode() for line in tokens_file.read_text(encoding="ascii").splitlines()]
    nobody = os.open(os.devnull, os.O_WRONLY)

    def loop(prefix: str, bodies: list[bytes], tokens: list[bytes] = tokens) -> Loop:
        return Loop(
            host="127.0.0.1", port=stage.port, paths=[f"/v1/sales/{sale_id}/orders"], tokens=tokens, bodies=bodies,
            connections=CONNECTIONS, prefix=prefix, record_fd=nobody,
        )  # fmt: skip

    good = b'{"items":[{"sku":"%s","quantity":1}]}'
    bad = [b'{"items":[]}', b'{"items":', good % b"SKU-NONE", b'{"items":[{"sku":"SKU-1","quantity":0}]}', b"null"]
    return {
        "accepted": loop("fresh", [good % SKU.encode()]),
        "replays": loop("fresh", [good % SKU.encode()]),
        "sold out": loop("gone", [good % SOLD_OUT_SKU.encode()]),
        "bad bodies": loop("bad", bad),
        "bad tokens": loop("token", [good % SKU.encode()], [token[:-4] + b"AAAA" for token in tokens[:1000]]),
    }


def as_text(result: dict[str, Any]) -> list[str]:
    """Expected and seen answers."""
    first, last = result["samples"][0], result["samples"][-1]
    lines = [f"{kind}: {answers}" for kind, answers in result["answers"].items()]
    lines += [
        f"{kind}: {first[kind]:.1f} MiB at the start, {last[kind]:.1f} MiB after {result['requests']:,} requests, "
        f"{result['growth_mib_per_million'][kind]:+.2f} +- {result['standard_error'][kind]:.2f} MiB a million"
        for kind in ("resident", "anonymous")
    ]
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.growth", description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2_000_000)
    parser.add_argument("--every", type=int, default=20_000, help="requests from one sample to the next")
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
