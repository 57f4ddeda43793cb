"""One demo from an empty folder to the report: stack, sale, load, crash, drain, payments, recounts, verdicts."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from devstack.children import spawn
from devstack.demo.load import Course, DriverRun
from devstack.demo.money import MoneyRecount, recount_money
from devstack.demo.paying import Payments, pay_some
from devstack.demo.recount import Recount, read_promises, recount, stored_orders
from devstack.launch import stop, wait_until_up
from devstack.state import StateFolder
from ops.shop import Shop, call
from ops.stack_file import PROJECT, Stack, StackError
from ops.tokens import mint_many
from runtime.process.settings import load_settings, overrule
from runtime.tokens.keys import load_token_keys

DRAIN_S_MAX = 60.0
VERDICT_S_MAX = 120.0
TOKEN_S = 3600


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Size of a demo."""

    units: int
    skus: int
    users: int
    connections: int
    sold_out_s: float

    def run(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Run the demo and return the report; its `failures` are empty when all checks hold. Leaves nothing behind."""
        with own_stack(say) as (stack, folder):
            say("creating products and a sale")
            shop = Shop.log_in(stack.backoffice_url, **stack.admin)
            stock = self._stock()
            for sku in stock:
                shop.create_product(sku=sku, name=f"Demo {sku}", price_minor=1999)
            sale_id = UUID(shop.create_open_sale(name="Demo", stock=stock, price_minor=1999)["id"])
            say(f"minting tokens of {self.users:,} users")
            tokens = folder.path / "tokens.tsv"
            users = self._write_tokens(tokens, folder)
            load = DriverRun(sale_id, stock, tokens, folder.path / "orders.tsv", self.connections, self.sold_out_s)
            course = load.drive(stack, folder, say)
            say("waiting until all orders are stored")
            _drain(course, stack, sale_id)
            say("recounting every 202 in the shards")
            promises = read_promises(load.orders, users=list(users), skus=list(stock))
            counted = recount(
                promises,
                shard_dsns=stack.shard_dsns, sale_id=sale_id, stock=stock, topology=load_settings().topology,
            )  # fmt: skip
            say("paying some orders")
            payments = pay_some(promises, edge_url=stack.edge_url, tokens=users)
            say("recounting the money")
            money = recount_money(stack, sale_id)
            say("proving the invariants")
            verdicts = _verdicts(stack, folder, sale_id)
            durability = call("GET", f"{stack.edge_url}/readyz").get("durability")
        return self._report(course, counted, payments, money, verdicts, durability)

    def _stock(self) -> dict[str, int]:
        share, rest = divmod(self.units, self.skus)
        return {f"DEMO-{place + 1}": share + (place < rest) for place in range(self.skus)}

    def _write_tokens(self, path: Path, folder: StateFolder) -> dict[UUID, str]:
        users = {}
        issuer = load_settings().token_issuer
        path.touch(mode=0o600)
        with path.open("w", encoding="ascii") as file:
            for user, token in mint_many(
                load_token_keys(folder.token_keys), count=self.users, issuer=issuer, ttl_s=TOKEN_S
            ):
                users[UUID(user)] = token
                file.write(f"{user}\t{token}\n")
        return users

    def _report(
        self,
        course: Course,
        counted: Recount,
        payments: Payments,
        money: MoneyRecount,
        verdicts: dict[str, Any],
        durability: str | None,
    ) -> dict[str, Any]:
        driver = course.driver
        restart_s = course.restarted_at - course.killed_at if course.restarted_at and course.killed_at else None
        report = {
            "sale": asdict(self),
            "durability": durability,
            "processors": os.cpu_count(),
            "accepted": {
                "count": driver["accepted"],
                "per_s": round(course.accepted_per_s),
                "latency_ms": driver["accepted_ms"],
            },
            "refused": {
                "count": driver["refused"],
                "per_s": round(course.refused_per_s),
                "latency_ms": driver["refused_ms"],
            },
            "answers": [{"status": s, "code": c, "count": n} for s, c, n in driver["answers"]],
            "repeated_requests": driver["retries"],
            "transport_errors": driver["transport_errors"],
            "without_answer": driver["given_up"] + driver["unanswered"],
            "redis_kill": {"back_after_s": restart_s, "seconds_without_orders": round(course.outage_s, 1)},
            "drain_s": None if course.stored_at is None else max(0.0, course.stored_at - course.last_accepted_at),
            "recount": asdict(counted),
            "payments": asdict(payments) | {"per_s": round(payments.per_s)},
            "money": money.as_document(),
            "invariants": {
                **{name: verdicts.get(name) for name in "ABG"},
                "detail": [*verdicts.get("detail", []), *verdicts.get("money", [])],
            },
        }
        report["failures"] = [*self._failures(report, course, counted), *_money_failures(report, payments, money)]
        return report

    def _failures(self, report: dict[str, Any], course: Course, counted: Recount) -> list[str]:
        checks = {
            f"{report['accepted']['count']} of {self.units} units were sold": report["accepted"]["count"] == self.units,
            "some orders have no answer": report["without_answer"] == 0,
            "Redis was not killed, or not restarted": course.restarted_at is not None,
            "orders were not stored in time": course.stored_at is not None,
            "the recount differs": counted.is_right,
            "invariant A (no oversell) is not proved": report["invariants"]["A"] is True,
            "invariant B (nothing lost) is not proved": report["invariants"]["B"] is True,
            "unexpected answers (5xx other than 503 and 504)": not any(
                answer["status"] >= 500 and answer["status"] not in (503, 504) for answer in report["answers"]
            ),
        }
        return [text for text, holds in checks.items() if not holds]


def _money_failures(report: dict[str, Any], payments: Payments, money: MoneyRecount) -> list[str]:
    checks = {
        f"some payments were not made: {payments.failed}": not payments.failed,
        f"{payments.confirmed} payments were confirmed, {money.captured} are at the provider": (
            payments.confirmed == money.captured > 0
        ),
        "the recount of the money differs": money.is_right,
        "invariant G (all money accounted for) is not proved": report["invariants"]["G"] is True,
    }
    return [text for text, holds in checks.items() if not holds]


def _drain(course: Course, stack: Stack, sale_id: UUID) -> None:
    """Wait until all accepted orders are stored; `stored_at` stays None if that takes too long."""
    deadline = time.monotonic() + DRAIN_S_MAX
    while course.stored_at is None and time.monotonic() < deadline:
        if stored_orders(stack.shard_dsns, sale_id) >= course.driver["accepted"]:
            course.stored_at = time.monotonic()
        else:
            time.sleep(0.1)


def _verdicts(stack: Stack, folder: StateFolder, sale_id: UUID) -> dict[str, Any]:
    """The reconciler's verdicts on invariants A and B of the sale, and on G."""
    done = subprocess.run(
        [sys.executable, "-m", "workers.reconciler", "--once", "--json", "--sale", str(sale_id)],
        cwd=PROJECT, env=overrule(os.environ, folder.settings_env(stack)), capture_output=True,
        timeout=VERDICT_S_MAX, check=False,
    )  # fmt: skip
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise StackError(f"the reconciler failed: {done.stderr.decode(errors='replace')[-2000:]}") from error
    return answer


@contextmanager
def own_stack(
    say: Callable[[str], None],
    *,
    name: str = "demo",
    supervisor_module: str = "devstack.supervisor",
    prepare: Callable[[StateFolder], None] = lambda _: None,
    settings: Mapping[str, str] | None = None,
    parent: Path | None = None,
) -> Iterator[tuple[Stack, StateFolder]]:
    """A stack on free ports in a folder of its own, on the project's disk: on a RAM disk fsync would look too fast.

    `parent` is another folder to create it in.

    It ends when this process ends for any reason, and is removed afterwards. `prepare` gets the folder before anything
    starts; `settings` are FLASHSALE_* of all processes and override the caller's.
    """
    usual = StateFolder.at(None).path
    if parent is None:
        usual.mkdir(mode=0o700, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent or usual))
    folder = StateFolder(path)
    try:
        folder.make()
        prepare(folder)
        say("starting servers and processes")
        log = folder.log("supervisor")
        with sigterm_as_interrupt():
            supervisor = spawn(
                [sys.executable, "-m", supervisor_module, str(path), "0", "0"],
                env={**overrule(os.environ, settings or {}), "PYTHONUNBUFFERED": "1"}, log=log, cwd=PROJECT,
                orphan_signal=signal.SIGTERM,
            )  # fmt: skip
            try:
                yield wait_until_up(folder, supervisor, log), folder
            except (StackError, OSError):
                _keep_logs(folder)
                raise
            finally:
                say("stopping the stack")
                stop(folder)
                supervisor.wait(10)
    finally:
        if folder.supervisor_pid() is None:
            folder.destroy()
        if parent is None and not any(usual.iterdir()):
            usual.rmdir()


def _keep_logs(folder: StateFolder) -> None:
    """Copy the logs of a failed run to a folder that is not removed."""
    kept = Path(tempfile.gettempdir()) / f"flashsale-demo-logs-{secrets.token_hex(4)}"
    shutil.copytree(folder.logs, kept)
    sys.stderr.write(f"logs are kept in {kept}\n")


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that `finally` blocks stop and remove the stack."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
