"""`flashsale payments reconcile` on a stack that is up: each difference by name, and an exit status for scripts."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from typer.testing import CliRunner, Result

from ops.commands.payments import app
from runtime.process.errors import OperatorError
from tests.fixtures.fix_stack import RunningStack, eventually


def run(stack: RunningStack, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["reconcile", "--state-dir", str(stack.folder.path), *arguments])


def compared(stack: RunningStack, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = run(stack, "--grace-s", "0", "--json", *arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, json.loads(done.stdout)


def control(stack: RunningStack, **members: Any) -> dict[str, Any]:
    answer = httpx.post(
        f"{stack.stack.payment_url}/v1/control", json=members, headers={"Authorization": f"Bearer {stack.stack.payment_secret}"}
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ordered(stack: RunningStack) -> tuple[httpx.Client, str]:
    """The buyer of a new order, and the address of the order."""
    sample = json.loads(stack.flashsale("sample-sale", "--units", "5", "--json").stdout)
    eventually(lambda: httpx.get(sample["sale_url"]).status_code == 200)
    done = subprocess.run(shlex.split(sample["curl"]), capture_output=True, text=True, timeout=30, check=True)
    head, _, body = done.stdout.partition("\n\n")
    assert head.split()[1] == "202", done.stdout
    token = re.search(r"authorization: (bearer [\w.~-]+)", sample["curl"], re.IGNORECASE)
    assert token is not None
    buyer = httpx.Client(headers={"Authorization": token[1]})
    return buyer, f"{stack.stack.edge_url}/v1/orders/{json.loads(body)['order_id']}"


def pay(stack: RunningStack, action: str = "pay") -> tuple[httpx.Client, str]:
    buyer, order = ordered(stack)
    started = buyer.post(f"{order}/payment")
    assert started.status_code == 200, started.text
    assert httpx.post(started.json()["payment_url"], data={"action": action}).status_code == 303
    return buyer, order


def test_ledgers_agree_after_payments_and_refunds(running_stack: RunningStack) -> None:
    buyer, order = pay(running_stack, "pay_twice")
    eventually(lambda: buyer.get(order).json().get("refunded_minor", 0) > 0)
    assert buyer.get(order).json()["payment"] == "captured"
    status, found = compared(running_stack)
    assert (status, found["differences"]) == (0, [])
    assert found["payments"] >= 2 and found["refunds"] >= 1 and found["provider"] == "simulated"
    assert "No difference." in run(running_stack).stdout


def test_money_that_the_shop_does_not_know_is_named(running_stack: RunningStack) -> None:
    control(running_stack, lost_share=1)
    try:
        _, order = pay(running_stack)
    finally:
        control(running_stack, lost_share=0)
    status, found = compared(running_stack)
    (difference,) = found["differences"]
    assert (status, difference["kind"]) == (1, "payment_without_row")
    assert order.endswith(difference["order_id"]) and difference["ours"] is None
    young = run(running_stack)
    assert young.exit_code == 0 and re.search(r"under way +1 ", young.stdout)
    told = run(running_stack, "--grace-s", "0")
    assert told.exit_code == 1
    assert (
        "payment_without_row" in told.stdout
        and difference["order_id"] in told.stdout
        and "1 difference." in told.stdout
    )
    assert compared(running_stack, "--since", "2099-01-01T00:00:00Z")[1]["payments"] == 0


def test_row_that_the_provider_does_not_know_is_named(running_stack: RunningStack) -> None:
    event_id = f"evt_{uuid4().hex}"
    with psycopg.connect(running_stack.stack.shard_dsns[0]) as connection:
        connection.execute(
            "INSERT INTO payments (event_id, order_id, user_id, sale_id, provider, reference, amount_minor, currency,"
            " state, settles, confirmed) VALUES (%s, %s, %s, %s, 'simulated', '', 5, 'EUR', 'captured', true, true)",
            (event_id, uuid4(), uuid4(), uuid4()),
        )
    try:
        status, found = compared(running_stack)
    finally:
        with psycopg.connect(running_stack.stack.shard_dsns[0]) as connection:
            connection.execute("DELETE FROM payments WHERE event_id = %s", (event_id,))
    named = {difference["id"]: difference["kind"] for difference in found["differences"]}
    assert status == 1 and named[event_id] == "row_without_payment"


def test_provider_that_is_down_is_no_verdict(running_stack: RunningStack) -> None:
    control(running_stack, down_s=60)
    try:
        done = run(running_stack, "--json")
    finally:
        control(running_stack, down_s=0)
    assert isinstance(done.exception, OperatorError) and done.stdout == ""
    assert "simulated does not show its ledger: status 503" in str(done.exception)


@pytest.mark.parametrize("since", ["yesterday", "0h", "24", "2026-11-28T00:00:00"])
def test_wrong_time_is_wrong_usage(running_stack: RunningStack, since: str) -> None:
    done = run(running_stack, "--since", since)
    assert done.exit_code == 2 and "--since" in done.output


def test_without_a_provider_there_is_nothing_to_compare(
    running_stack: RunningStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHSALE_SHARD_DSNS", ",".join(running_stack.stack.shard_dsns))
    done = CliRunner().invoke(app, ["reconcile"])
    assert isinstance(done.exception, OperatorError) and "FLASHSALE_PAYMENT_PROVIDER" in str(done.exception)


def test_worker_publishes_its_comparison(running_stack: RunningStack) -> None:
    text = httpx.get(f"{running_stack.stack.metrics['payments-0']}/metrics").text
    assert re.search(r"^flashsale_payments_compared_age_seconds [0-9.e+]+$", text, re.MULTILINE)
    assert re.search(r'^flashsale_payments_differences\{kind="row_without_payment"\} 0\.0$', text, re.MULTILINE)


def test_only_edge_and_payment_worker_have_the_providers_secrets(running_stack: RunningStack) -> None:
    stack = running_stack.stack
    having = set()
    for name, pid in stack.processes.items():
        with open(f"/proc/{pid}/environ", "rb") as file:
            if stack.payment_secret.encode() in file.read():
                having.add(name)
    assert having == {"edge", "payments-0", "payment-simulator"}
