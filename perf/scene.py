"""The test rig of the gate: a complete stack, an empty handler beside it, and wrk as the load generator."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from subprocess import Popen

from devstack.children import free_port, log_tail, spawn
from devstack.plan import responds
from perf.processes import cpu_us, end, halted, tree
from perf.results import note
from perf.stage import ROOT, START_S_MAX, StageError
from perf.whole_stack import WholeStack, whole_stack
from perf.wrk import Answers, LoadGenerator

REST_S = 0.5  # between runs: connections close, the last batch ends
PUBLISH_S = 3.3  # several workers write their counts once a second
DRAIN_S_MAX = 600.0  # 1.4 million orders take one to two minutes
ORDER_PATH = ("edge", "redis", "postgres")
NAMES = {"A": "empty handler", "B": "accepted orders", "C": "sold out"}
WANTED = {"B": "accepted", "C": "sold_out"}


@dataclass(slots=True)
class Run:
    """One run of wrk. CPU time in microseconds: `edge`, `redis` and `wrk` per answer, `others` in total."""

    name: str
    tag: str
    answers: Answers
    promised: int  # 202s of the edge, including those for which wrk did not wait
    unwanted: int  # unexpected answers, and broken connections
    edge_cpu_us: float
    redis_cpu_us: float
    wrk_cpu_us: float
    others_cpu_us: float
    stored_meanwhile: int
    found: int = 0  # orders of this run in the shards; known after the drain

    @property
    def missing(self) -> int:
        """202s without an order in a shard."""
        return self.promised - min(self.found, self.promised)

    @property
    def rate(self) -> float:
        """Answers a second; for B, only those whose orders were found."""
        return max(0, self.answers.requests - self.missing) / self.answers.duration_us * 1e6

    def __str__(self) -> str:
        return (
            f"{self.tag:4} {self.answers.requests / self.answers.duration_us * 1e6:9,.0f}/s"
            f"  p50 {self.answers.p50_us / 1000:6.2f} ms  p99 {self.answers.p99_us / 1000:6.2f} ms"
            f"  cpu us: server {self.edge_cpu_us:5.1f}  redis {self.redis_cpu_us:5.1f}  wrk {self.wrk_cpu_us:5.1f}"
        )


@dataclass(slots=True)
class Scene:
    """A running stack, the empty handler beside it, and the load generator."""

    stack: WholeStack
    empty: Popen[bytes]
    empty_url: str
    load_generator: LoadGenerator
    say: Callable[[str], None]
    edge_workers: int = 1
    promised: int = 0  # 202s of all runs so far

    def run(self, name: str, tag: str, seconds: int) -> Run:
        """Send orders for this time."""
        self.say(f"{tag}: {NAMES[name]}, {seconds} s")
        server = self.empty.pid if name == "A" else self.stack.stack.processes["edge"]
        watched = {"server": tree(server), "redis": [self.stack.stack.processes["redis"]]}
        outcomes, stored = self._outcomes(), self.stack.depths().stored
        others = self._others_cpu_us()
        before = {each: cpu_us(pids) for each, pids in watched.items()}
        answers, wrk_us = self.load_generator.order(
            self.empty_url if name == "A" else self.stack.aim.url,
            f"/v1/sales/{self.stack.sale_id}/orders",
            sku=self.stack.sold_out_sku if name == "C" else self.stack.aim.skus[0], tag=tag, seconds=seconds,
        )  # fmt: skip
        spent = {each: cpu_us(pids) - before[each] for each, pids in watched.items()}
        others = self._others_cpu_us() - others
        stored = self.stack.depths().stored - stored
        time.sleep(REST_S)
        grown = {outcome: count - outcomes.get(outcome, 0) for outcome, count in self._outcomes().items()}
        promised = max(grown.get("accepted", 0), answers.requests - answers.not_2xx if name == "B" else 0)
        self.promised += promised
        return Run(
            name, tag, answers, promised=promised,
            unwanted=unwanted(name, answers, grown), edge_cpu_us=spent["server"] / answers.requests,
            redis_cpu_us=spent["redis"] / answers.requests, wrk_cpu_us=wrk_us / answers.requests, others_cpu_us=others,
            stored_meanwhile=stored,
        )  # fmt: skip

    def halted(self) -> AbstractContextManager[None]:
        """Halt everything in the stack but edge, Redis and an idle PostgreSQL while the block runs."""
        return halted([pid for name, pid in self.stack.stack.processes.items() if name not in ORDER_PATH])

    def drain(self) -> float:
        """Wait until as many orders are stored as were promised, at most DRAIN_S_MAX. Returns the seconds it took."""
        promised, began = self.promised, time.monotonic()
        while (stored := self.stack.depths().stored) < promised and time.monotonic() < began + DRAIN_S_MAX:
            self.say(f"draining: {stored:,} of {promised:,} orders stored after {time.monotonic() - began:.0f} s")
            time.sleep(0.2)
        took_s = time.monotonic() - began
        note(f"drained: {stored:,} of {promised:,} orders stored after {took_s:.1f} s")
        return took_s

    def recount(self, runs: Sequence[Run]) -> None:
        """Set the number of found orders of each run from the shards."""
        found = self.stack.orders_by_key_prefix()
        for run in runs:
            run.found = found.get(run.tag, 0)

    def _outcomes(self) -> dict[str, int]:
        if self.edge_workers > 1:
            time.sleep(PUBLISH_S)
        return self.stack.edge_outcomes()

    def _others_cpu_us(self) -> float:
        return sum(value for name, value in self.stack.cpu_us().items() if name not in ("edge", "redis"))


def unwanted(name: str, answers: Answers, outcomes: dict[str, int]) -> int:
    """Unexpected answers of a run, counted by wrk or by the edge, whichever is more."""
    refused = answers.requests - answers.not_2xx if name == "C" else answers.not_2xx
    others = sum(count for outcome, count in outcomes.items() if outcome != WANTED.get(name))
    return answers.broken + max(refused, others)


@contextmanager
def scene(arguments: argparse.Namespace, say: Callable[[str], None]) -> Iterator[Scene]:
    """A stack and an empty handler; both are removed afterwards. `arguments` are the gate's."""
    settings = {
        "FLASHSALE_EDGE_WORKERS": str(arguments.workers),
        "FLASHSALE_LOG_LEVEL": "WARNING",
        "FLASHSALE_STREAM_LENGTH_MAX": "100000000",
        **({"FLASHSALE_DURABILITY": "memory"} if arguments.fsync == "off" else {}),
        **dict(setting.split("=", 1) for setting in arguments.set),
    }
    with whole_stack(say, users=arguments.users, settings=settings) as stack:
        if arguments.fsync == "off":
            stack.redis.config_set("appendonly", "no")
        load_generator = LoadGenerator(stack.aim.tokens, arguments.users, arguments.connections)
        with empty_handler(stack, arguments.workers) as (process, url):
            yield Scene(stack, process, url, load_generator, say, arguments.workers)


@contextmanager
def empty_handler(stack: WholeStack, workers: int = 1) -> Iterator[tuple[Popen[bytes], str]]:
    """The handler A in the server that the edge configures, with the same settings (`edge.server`)."""
    port = free_port()
    command = [
        sys.executable, "-m", "granian", "--interface", "rsgi", "--host", "127.0.0.1", "--port", str(port),
        "--workers", str(workers), "--loop", "uvloop", "--http", "1", "--no-ws", "--backlog", "16384",
        "--backpressure", "16384", "--log-level", "warning", "perf.empty_handler:app",
    ]  # fmt: skip
    log = stack.aim.tokens.with_name("empty-handler.log")
    process = spawn(command, env=os.environ, log=log, cwd=ROOT)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_S_MAX
        while not responds(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise StageError(f"the empty handler did not start: {log_tail(log)}")
            time.sleep(0.05)
        yield process, url
    finally:
        end(process)
