"""`python -m perf.gate`: throughput of the order path as ratios to an empty handler, measured with wrk in one run.

A is an empty Granian handler, B accepted orders with fresh keys and everything on, C orders for a SKU that is sold out.
They alternate, so that a slow minute of the machine hits all three. Nothing but Redis and the edge runs during B.
Exit status: 0 all gates met, 1 one missed, 2 wrk is not installed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import UUID

import redis

from devstack.children import free_port
from devstack.servers import RedisServer
from domain import ids, topology
from domain.sales import LaneSaleState, SaleDefinition, SaleItem, Stock
from hotpath.scripts import load_script
from perf.processes import cpu_us, tree
from perf.results import Figure, Target, add_options, conclude
from runtime.token_keys import create_token_keys, load_token_keys, mint_buyer_token

HERE = Path(__file__).parent
ROOT = HERE.parent
USERS = 100_000
SKU, SOLD_OUT_SKU = "SKU-1", "SKU-GONE"
START_S_MAX = 20.0
REST_S = 0.5  # between runs: connections close, the last batch ends

GATES = {"B/A": 0.33, "C/A": 0.50}
GOALS = {"B/A": 0.50, "C/A": 0.70}
P99_FACTOR_MAX = 5.0
METHOD = (
    "wrk, one thread, 128 keep-alive connections without pipelining, a fresh key a request, 100,000 users. A: empty RSGI "
    "handler with the same server settings; B: accepted orders, appendfsync always; C: sold out. A B C alternate in one run "
    "after a round of warm-up; medians. Load generator, edge and Redis share the machine."
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of wrk."""

    name: str
    requests: int
    duration_us: int
    not_2xx: int
    broken: int
    p50_us: int
    p90_us: int
    p99_us: int
    p999_us: int
    max_us: int
    server_cpu_us: float  # processor time an answer, user and system, of the server and its workers
    redis_cpu_us: float
    wrk_cpu_us: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.requests / self.duration_us * 1e6


def main() -> int:
    arguments = _arguments()
    if shutil.which("wrk") is None:
        print("wrk is not installed: it is in the Debian package `wrk` (apt-get install wrk)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="flashsale-gate-") as name, _stage(Path(name), arguments) as stage:
        runs = stage.measure()
    return _report(runs, stage, arguments)


class Stage:
    """The servers and the token file of one gate."""

    def __init__(self, folder: Path, redis_server: RedisServer, arguments: argparse.Namespace) -> None:
        self.folder = folder
        self.arguments = arguments
        self.redis_server = redis_server
        self.redis = redis.Redis(port=redis_server.port)
        self.sale_id = ids.new_uuid7()
        self.empty_port, self.edge_port = free_port(), free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.accepted = 0
        self.streamed = 0

    def prepare(self) -> None:
        """Keys, tokens, the sale."""
        create_token_keys(self.folder / "keys.json")
        keys = load_token_keys(self.folder / "keys.json")
        with (self.folder / "tokens").open("w", encoding="ascii") as file:
            for number in range(USERS):
                user = UUID(int=(0xB0B << 116) | (4 << 76) | (2 << 62) | number)
                token = mint_buyer_token(keys, user_id=user, issuer="flashsale", ttl_s=86_400)
                file.write(f"{user}\t{token}\n")
        now_ms = int(time.time() * 1000)
        definition = SaleDefinition(
            self.sale_id, "gate", 1, 1, LaneSaleState.RUNNING, now_ms - 1000, now_ms + 86_400_000, 600_000, "EUR",
            (0,), (SaleItem(SKU, 1999, 100), SaleItem(SOLD_OUT_SKU, 1999, 0)),
        )  # fmt: skip
        load = load_script("load-1")
        self.redis.eval(
            load.source, 1, topology.lane_state_key(0), ids.short(self.sale_id), definition.pack_for_lane(),
            Stock.fresh(1_000_000_000).pack(), Stock.fresh(0).pack(),
        )  # fmt: skip
        self.redis.set(topology.sale_key(self.sale_id), json.dumps(definition.as_document()))
        self.redis.sadd(topology.SALES_KEY, str(self.sale_id))

    def server_commands(self) -> dict[str, tuple[list[str], int]]:
        """Name -> command and port. A runs in the server that the edge configures, with the same numbers."""
        workers = str(self.arguments.workers)
        empty = [
            sys.executable, "-m", "granian", "--interface", "rsgi", "--host", "127.0.0.1",
            "--port", str(self.empty_port), "--workers", workers, "--loop", "uvloop", "--http", "1", "--no-ws",
            "--backlog", "16384", "--backpressure", "16384", "--log-level", "warning", "perf.empty_handler:app",
        ]  # fmt: skip
        return {
            "empty": (empty, self.empty_port),
            "edge": ([sys.executable, "-m", "edge"], self.edge_port),
        }

    def environment(self) -> dict[str, str]:
        """Of the edge: everything at its default but addresses."""
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith("FLASHSALE_")},
            "FLASHSALE_REDIS_URL": self.redis_server.url,
            "FLASHSALE_EDGE_PORT": str(self.edge_port),
            "FLASHSALE_EDGE_WORKERS": str(self.arguments.workers),
            "FLASHSALE_TOKEN_KEYS_FILE": str(self.folder / "keys.json"),
            "FLASHSALE_LOG_LEVEL": "WARNING",
            "FLASHSALE_STREAM_LENGTH_MAX": "100000000",
            **dict(setting.split("=", 1) for setting in self.arguments.set),
        }

    def measure(self) -> list[Run]:
        """A B C in turn."""
        path = f"/v1/sales/{self.sale_id}/orders"
        runs = []
        for number in range(self.arguments.rounds + 1):
            # The first round only warms up: caches, the append-only file, the scripts, what wrk maps.
            seconds = self.arguments.seconds if number else min(2, self.arguments.seconds)
            for name, port, sku in (
                ("A", self.empty_port, SKU),
                ("B", self.edge_port, SKU),
                ("C", self.edge_port, SOLD_OUT_SKU),
            ):
                before = self.verdicts()
                run = self._wrk(name, port, path, sku, f"{name}{number}", seconds)
                time.sleep(REST_S)
                self._check(run, before, self.verdicts())
                if number:
                    runs.append(run)
                    print(
                        f"{name}{number} {run.rate:9,.0f}/s  p50 {run.p50_us / 1000:6.2f} ms  p99 {run.p99_us / 1000:6.2f} ms"
                        f"  cpu us: server {run.server_cpu_us:5.1f}  redis {run.redis_cpu_us:5.1f}  wrk {run.wrk_cpu_us:5.1f}"
                    )
        self.streamed = self.redis.xlen(topology.lane_stream_key(0))
        return runs

    def _wrk(self, name: str, port: int, path: str, sku: str, tag: str, seconds: int) -> Run:
        command = [
            "wrk", "-t1", f"-c{self.arguments.connections}", f"-d{seconds}s", "--timeout", "10s", "--latency",
            "-s", str(HERE / "wrk_orders.lua"), f"http://127.0.0.1:{port}", "--",
            str(self.folder / "tokens"), path, sku, tag, "0", str(USERS),
        ]  # fmt: skip
        server = self.processes["empty" if name == "A" else "edge"]
        assert self.redis_server.process is not None
        watched = [tree(server.pid), [self.redis_server.process.pid]]
        before = [cpu_us(pids) for pids in watched]
        own_before = os.times()
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
        own = os.times()
        server_us, redis_us = (cpu_us(pids) - earlier for pids, earlier in zip(watched, before, strict=True))
        wrk_us = (own.children_user + own.children_system - own_before.children_user - own_before.children_system) * 1e6
        line = next(line for line in output.splitlines() if line.startswith("RESULT "))
        result = json.loads(line.removeprefix("RESULT "))
        n = result["requests"]
        return Run(name, **result, server_cpu_us=server_us / n, redis_cpu_us=redis_us / n, wrk_cpu_us=wrk_us / n)

    def verdicts(self) -> dict[str, int]:
        """The edge's own counts."""
        connection = http.client.HTTPConnection("127.0.0.1", self.edge_port, timeout=10)
        deadline = time.monotonic() + 3 * 1.1  # workers publish once a second
        while self.arguments.workers > 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        counts: dict[str, int] = {}
        for line in text.splitlines():
            if line.startswith("flashsale_edge_orders_total{"):
                outcome = line.split('outcome="')[1].split('"')[0]
                counts[outcome] = counts.get(outcome, 0) + int(float(line.rsplit(" ", 1)[1]))
        return counts

    def _check(self, run: Run, before: dict[str, int], after: dict[str, int]) -> None:
        """A figure counts only when every answer was the wanted one."""
        grown = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
        self.accepted += grown.get("accepted", 0)
        if run.broken:
            raise SystemExit(f"{run.name}: {run.broken} broken connections or time-outs")
        if run.name == "C":
            others = {name: count for name, count in grown.items() if name != "sold_out"}
            if run.not_2xx != run.requests or others:
                raise SystemExit(f"C: not all were refused as sold out: {others}, {run.not_2xx} of {run.requests}")
        elif run.not_2xx or (run.name == "B" and grown.keys() != {"accepted"}):
            raise SystemExit(f"{run.name}: not all were accepted: {grown}, {run.not_2xx} of {run.requests} are not 2xx")


@contextmanager
def _stage(folder: Path, arguments: argparse.Namespace) -> Iterator[Stage]:
    server = RedisServer(folder / "redis", durable=arguments.fsync == "always")
    processes: list[subprocess.Popen[bytes]] = []
    try:
        server.start()
        stage = Stage(folder, server, arguments)
        stage.prepare()
        for name, (command, port) in stage.server_commands().items():
            process = subprocess.Popen(command, env=stage.environment(), cwd=ROOT)
            processes.append(process)
            stage.processes[name] = process
            _wait_listening(process, port)
        _wait_ready(stage.edge_port)
        yield stage
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        server.stop()


def _wait_listening(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", "/livez")
            connection.getresponse().read()
            connection.close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"a server did not start: {process.args!r}")


def _wait_ready(port: int) -> None:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        if answer.status == 200:
            return
        time.sleep(0.1)
    raise SystemExit(f"the edge does not become ready: {body!r}")


def _report(runs: list[Run], stage: Stage, arguments: argparse.Namespace) -> int:
    rates = {name: statistics.median(r.rate for r in runs if r.name == name) for name in "ABC"}
    p99_us = {name: statistics.median(r.p99_us for r in runs if r.name == name) for name in "ABC"}
    ratios = {"B/A": rates["B"] / rates["A"], "C/A": rates["C"] / rates["A"]}
    text = [
        f"\n{'':4}{'per second':>12}{'p99 ms':>10}   (medians of {arguments.rounds} rounds of {arguments.seconds} s)"
    ]
    for name, meaning in (("A", "empty handler"), ("B", "accepted orders"), ("C", "sold out")):
        text.append(f"{name:4}{rates[name]:12,.0f}{p99_us[name] / 1000:10.2f}   {meaning}")
    lost = abs(stage.accepted - stage.streamed)
    targets = [
        *(Target(name, ratio, "times", least=GATES[name], goal=GOALS[name]) for name, ratio in ratios.items()),
        Target("p99(B)/p99(A)", p99_us["B"] / p99_us["A"], "times", most=P99_FACTOR_MAX),
        Target(f"difference of {stage.accepted:,} 202s and {stage.streamed:,} stream entries", lost, "orders", most=0),
    ]
    result = {"rates": rates, "p99_us": p99_us, "runs": [asdict(run) for run in runs]}
    return conclude(Figure("gate", METHOD, targets, result), arguments, text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="perf.gate", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=15, help="length of one run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=128)
    parser.add_argument("--workers", type=int, default=1, help="workers of the edge and of the empty handler")
    parser.add_argument("--fsync", choices=["always", "off"], default="always", help="off: for comparison only")
    parser.add_argument("--set", action="append", default=[], metavar="FLASHSALE_X=VALUE", help="a setting of the edge")
    add_options(parser, always_gate=True)
    arguments = parser.parse_args()
    if arguments.fsync == "off":
        arguments.set.append("FLASHSALE_DURABILITY=memory")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
