"""The test rig of the gate: a complete stack, empty handlers and peers beside it, and wrk as the load generator."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Final

from devstack.children import free_port, log_tail, spawn
from devstack.program import responds
from perf.peers.building import LANGUAGES
from perf.peers.running import Peer, running_peer
from perf.processes import cpu_us, end, halted, tree
from perf.results import note
from perf.stage import ROOT, START_S_MAX, UNITS, StageError
from perf.whole_stack import WholeStack, whole_stack
from perf.wrk import Answers, LoadGenerator

REST_S = 0.5  # between runs: connections close, the last batch ends
PUBLISH_S = 3.3  # several workers write their counts once a second
DRAIN_S_MAX = 900.0  # three million orders take four to five minutes
ORDER_PATH = ("edge", "redis", "postgres")
EMPTY: Final = {"A0": "empty handler, Granian's defaults", "A": "empty handler, the edge's settings"}
OURS: Final = {
    "B": "accepted, Granian door",
    "C": "sold out, Granian door",
    "D": "accepted, direct door",
    "E": "sold out, direct door",
}
PEERS: Final = {language: f"accepted, peer in {language}" for language in LANGUAGES}
NAMES: Final = {**EMPTY, **OURS, **PEERS}
WANTED: Final = {"B": "accepted", "C": "sold_out", "D": "accepted", "E": "sold_out"}
ACCEPTED: Final = ("B", "D", *PEERS)
"""Runs whose orders are counted again."""


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
    found: int = 0  # orders of this run in the shards, known after the drain; of a peer in its stream

    @property
    def missing(self) -> int:
        """202s without an order."""
        return self.promised - min(self.found, self.promised)

    @property
    def rate(self) -> float:
        """Answers a second; of accepted orders, only those that were found."""
        return max(0, self.answers.requests - self.missing) / self.answers.duration_us * 1e6

    def __str__(self) -> str:
        return (
            f"{self.tag:6} {self.answers.requests / self.answers.duration_us * 1e6:9,.0f}/s"
            f"  p50 {self.answers.p50_us / 1000:6.2f} ms  p99 {self.answers.p99_us / 1000:6.2f} ms"
            f"  cpu us: server {self.edge_cpu_us:5.1f}  redis {self.redis_cpu_us:5.1f}  wrk {self.wrk_cpu_us:5.1f}"
        )


@dataclass(frozen=True, slots=True)
class Receiver:
    """The receiver of a run: its address and its processes."""

    url: str
    server: int
    redis: int


@dataclass(slots=True)
class Scene:
    """A running stack, what it is compared with, and the load generator."""

    stack: WholeStack
    empty: Mapping[str, tuple[Popen[bytes], str]]
    load_generator: LoadGenerator
    say: Callable[[str], None]
    peers: Mapping[str, Peer] = field(default_factory=dict)
    edge_workers: int = 1
    promised: int = 0  # 202s of the edge in all runs so far

    @property
    def names(self) -> list[str]:
        """The runs that are possible here, in order."""
        return [name for name in NAMES if name in OURS or name in self.empty or name in self.peers]

    def run(self, name: str, tag: str, seconds: int) -> Run:
        """Send orders for this time."""
        self.say(f"{tag}: {NAMES[name]}, {seconds} s")
        receiver = self._receiver(name)
        watched = {"server": tree(receiver.server), "redis": [receiver.redis]}
        outcomes, stored = self._outcomes(), self.stack.depths().stored
        peer = self.peers.get(name)
        found = peer.orders() if peer is not None else 0
        others = self._others_cpu_us()
        before = {each: cpu_us(pids) for each, pids in watched.items()}
        answers, wrk_us = self.load_generator.order(
            receiver.url, f"/v1/sales/{self.stack.sale_id}/orders",
            sku=self.stack.sold_out_sku if WANTED.get(name) == "sold_out" else self.stack.aim.skus[0],
            tag=tag, seconds=seconds,
        )  # fmt: skip
        spent = {each: cpu_us(pids) - before[each] for each, pids in watched.items()}
        others = self._others_cpu_us() - others
        stored = self.stack.depths().stored - stored
        time.sleep(REST_S)
        grown = {outcome: count - outcomes.get(outcome, 0) for outcome, count in self._outcomes().items()}
        promised = max(grown.get("accepted", 0), answers.requests - answers.not_2xx if name in ACCEPTED else 0)
        self.promised += promised if name in OURS else 0
        return Run(
            name, tag, answers, promised=promised,
            unwanted=unwanted(name, answers, grown), edge_cpu_us=spent["server"] / answers.requests,
            redis_cpu_us=spent["redis"] / answers.requests, wrk_cpu_us=wrk_us / answers.requests, others_cpu_us=others,
            stored_meanwhile=stored, found=peer.orders() - found if peer is not None else 0,
        )  # fmt: skip

    def _receiver(self, name: str) -> Receiver:
        pids = self.stack.stack.processes
        if name in self.empty:
            process, url = self.empty[name]
            return Receiver(url, process.pid, pids["redis"])
        if name in self.peers:
            peer = self.peers[name]
            assert peer.server.process is not None
            return Receiver(peer.url, peer.process.pid, peer.server.process.pid)
        direct = self.stack.stack.edge_direct_url
        if name in ("D", "E"):
            assert direct is not None, "the embedded stack opens the direct door"
            return Receiver(direct, pids["edge"], pids["redis"])
        return Receiver(self.stack.stack.edge_url, pids["edge"], pids["redis"])

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
        """Set the number of found orders of each of our runs from the shards."""
        found = self.stack.orders_by_key_prefix()
        for run in runs:
            if run.name not in PEERS:
                run.found = found.get(run.tag, 0)

    def _outcomes(self) -> dict[str, int]:
        if self.edge_workers > 1:
            time.sleep(PUBLISH_S)
        return self.stack.edge_outcomes()

    def _others_cpu_us(self) -> float:
        return sum(value for name, value in self.stack.cpu_us().items() if name not in ("edge", "redis"))


def unwanted(name: str, answers: Answers, outcomes: dict[str, int]) -> int:
    """Unexpected answers of a run, counted by wrk or by the edge, whichever is more."""
    refused = answers.requests - answers.not_2xx if WANTED.get(name) == "sold_out" else answers.not_2xx
    others = sum(count for outcome, count in outcomes.items() if outcome != WANTED.get(name))
    return answers.broken + max(refused, others)


@contextmanager
def scene(arguments: argparse.Namespace, say: Callable[[str], None]) -> Iterator[Scene]:
    """A stack with everything beside it, which is removed afterwards. `arguments` are the gate's. PeerNotBuilt."""
    settings = {
        "FLASHSALE_EDGE_WORKERS": str(arguments.workers),
        "FLASHSALE_LOG_LEVEL": "WARNING",
        "FLASHSALE_STREAM_LENGTH_MAX": "100000000",
        **({"FLASHSALE_DURABILITY": "memory"} if arguments.fsync == "off" else {}),
        **dict(setting.split("=", 1) for setting in arguments.set),
    }
    if not arguments.without_peers:
        for name, language in LANGUAGES.items():
            say(f"building the peer in {name}")
            language.build()
    with whole_stack(say, users=arguments.users, settings=settings) as stack, ExitStack() as beside:
        if arguments.fsync == "off":
            stack.redis.config_set("appendonly", "no")
        load_generator = LoadGenerator(stack.aim.tokens, arguments.users, arguments.connections)
        folder = stack.aim.tokens.parent
        empty = {
            name: beside.enter_context(empty_handler(folder, as_the_edge=name == "A", workers=arguments.workers))
            for name in EMPTY
        }
        peers = {}
        if not arguments.without_peers:
            stock = {stack.aim.skus[0]: UNITS, stack.sold_out_sku: 0}
            for name in LANGUAGES:
                peers[name] = beside.enter_context(
                    running_peer(
                        name, folder, keys_file=stack.token_keys, sale_id=stack.sale_id, stock=stock,
                        durable=arguments.fsync == "always", workers=arguments.workers,
                    )
                )  # fmt: skip
        yield Scene(stack, empty, load_generator, say, peers, arguments.workers)


@contextmanager
def empty_handler(folder: Path, *, as_the_edge: bool, workers: int = 1) -> Iterator[tuple[Popen[bytes], str]]:
    """The handler A, with Granian's defaults or in the server that the edge configures (`edge.server`)."""
    port = free_port()
    command = [
        sys.executable, "-m", "granian", "--interface", "rsgi", "--host", "127.0.0.1", "--port", str(port),
        "--workers", str(workers), "--log-level", "warning", "perf.empty_handler:app",
    ]  # fmt: skip
    environ = {name: value for name, value in os.environ.items() if name != "PERF_AS_THE_EDGE"}
    if as_the_edge:
        command += ["--loop", "uvloop", "--http", "1", "--no-ws", "--backlog", "16384", "--backpressure", "16384"]
        environ["PERF_AS_THE_EDGE"] = "1"
    log = folder / f"empty-handler-{port}.log"
    process = spawn(command, env=environ, log=log, cwd=ROOT)
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
