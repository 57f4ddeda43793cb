"""`flashsale events` on a stack that is up: every event in its declared format, and a group that reads again."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
import sys
from typing import Any
from uuid import uuid4

import httpx
import pytest
from typer.testing import CliRunner

from domain.schemas import EVENT_TYPES, FAMILIES
from domain.topology import TOPICS
from ops.commands.events import app
from runtime.event_log import EventLog, LogRecord, open_event_log
from runtime.process.errors import OperatorError
from tests.contract.event_formats import check_record
from tests.fixtures.fix_databases import audited
from tests.fixtures.fix_stack import ROOT, RunningStack, eventually


def run(stack: RunningStack, *arguments: str) -> str:
    """The output of a command; raises its OperatorError."""
    done = CliRunner().invoke(app, [*arguments, "--state-dir", str(stack.folder.path)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def tail(stack: RunningStack, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(stack, "tail", "--json", *arguments).splitlines()]


def buy(stack: RunningStack) -> tuple[dict[str, Any], dict[str, Any]]:
    """A sample sale, and an order in it."""
    sample = json.loads(stack.flashsale("sample-sale", "--units", "5", "--json").stdout)
    eventually(lambda: httpx.get(sample["sale_url"]).status_code == 200)
    done = subprocess.run(shlex.split(sample["curl"]), capture_output=True, text=True, timeout=30, check=True)
    order: dict[str, Any] = json.loads(done.stdout.partition("\n\n")[2])
    return sample, order


def with_log(stack: RunningStack, topic: str, group: str | None, *, commit: bool = False) -> list[LogRecord]:
    """The records of a topic that a group has not read yet."""

    async def read(log: EventLog) -> list[LogRecord]:
        found: list[LogRecord] = []
        async with log.reader(group, topic, range(16)) as reader:
            while records := await reader.next_batch(count_max=1000, wait_s=0):
                found += records
            if commit:
                await reader.commit()
        return found

    async def opened() -> list[LogRecord]:
        log = open_event_log(stack.stack.event_log_url, TOPICS)
        try:
            return await read(log)
        finally:
            await log.close()

    return asyncio.run(opened())


def test_a_sample_sale_tells_of_its_product_its_sale_and_its_order(running_stack: RunningStack) -> None:
    sample, order = buy(running_stack)
    eventually(lambda: order["order_id"] in run(running_stack, "tail", "--topic", "orders.v1", "--limit", "50"))
    (reserved,) = [one for one in tail(running_stack, "--topic", "orders.v1") if one["subject"] == order["order_id"]]
    assert (reserved["type"], reserved["key"], reserved["version"]) == ("order.reserved", sample["user_id"], 1)
    assert reserved["data"]["items"] == [{"sku": sample["sku"], "quantity": 1, "unit_price_minor": 1999}]
    eventually(lambda: sample["sale_id"] in run(running_stack, "tail", "--type", "sale.published", "--limit", "50"))
    kinds = [one["type"] for one in tail(running_stack, "--topic", "sales.v1") if one["key"] == sample["sale_id"]]
    assert kinds == ["sale.created", "sale.published"]
    (product,) = [
        one for one in tail(running_stack, "--type", "product.created") if one["data"]["sku"] == sample["sku"]
    ]
    assert product["topic"] == "products.v1"
    assert len(tail(running_stack, "--limit", "3")) == 3
    assert run(running_stack, "tail", "--limit", "0") == ""


def test_every_event_of_the_stack_has_its_declared_format(running_stack: RunningStack) -> None:
    """All that this stack did for all tests so far."""
    buy(running_stack)
    eventually(lambda: bool(tail(running_stack, "--type", "sale.published", "--type", "user.registered")))
    counts = {}
    for spec in TOPICS:
        records = with_log(running_stack, spec.name, None)
        counts[spec.name] = len(records)
        for record in records:
            assert record.problem is None
            check_record(spec.name, record.headers, record.value)
    assert {name for name, count in counts.items() if count} >= {"orders.v1", "products.v1", "sales.v1", "users.v1"}


def test_following_prints_events_as_they_come(running_stack: RunningStack) -> None:
    command = [sys.executable, "-m", "ops.cli", "events", "tail", "--follow", "--json", "--limit", "0"]
    options = ["--type", "product.created", "--state-dir", str(running_stack.folder.path)]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            names: set[str] = set()

            def sold() -> bool:
                names.add(json.loads(running_stack.flashsale("sample-sale", "--json").stdout)["sku"])
                return process.poll() is not None or len(names) == 2

            eventually(sold)  # the first one may come before the command reads
            assert json.loads(process.stdout.readline())["data"]["sku"] in names
        finally:
            process.terminate()


def test_a_group_reads_again_what_a_replay_names(running_stack: RunningStack) -> None:
    group, topic = f"test.{uuid4().hex}", "orders.v1"
    _, order = buy(running_stack)
    eventually(lambda: bool(with_log(running_stack, topic, None)))
    chosen = ("replay", "--topic", topic, "--group", group)
    assert "nothing to replay" in run(running_stack, *chosen, "--offset", "1", "--yes")

    eventually(lambda: order["order_id"] in run(running_stack, "tail", "--topic", topic, "--limit", "50"))
    first = with_log(running_stack, topic, group, commit=True)
    assert with_log(running_stack, topic, group) == []
    shown = json.loads(run(running_stack, *chosen, "--since", "1d", "--dry-run", "--json"))
    assert (shown["done"], sum(step["records"] for step in shown["partitions"])) == (False, len(first))
    assert with_log(running_stack, topic, group) == [], "a dry run changes nothing"
    with pytest.raises(OperatorError, match="--yes"):
        run(running_stack, *chosen, "--since", "1d")
    assert audited(running_stack.stack.catalogue_dsn, f"events:{topic}/{group}") == []

    run(running_stack, *chosen, "--since", "1d", "--yes")
    assert [(r.partition, r.offset) for r in with_log(running_stack, topic, group, commit=True)] == [
        (r.partition, r.offset) for r in first
    ]
    entries = audited(running_stack.stack.catalogue_dsn, f"events:{topic}/{group}")
    assert entries == [("events.replay", "begun"), ("events.replay", "done")]
    # One partition, from an offset on: at least the newest record of the partition of our order.
    (mine,) = [record for record in first if order["order_id"].encode() in record.value][-1:]
    run(running_stack, *chosen, "--partition", str(mine.partition), "--offset", str(mine.offset), "--yes")
    again = with_log(running_stack, topic, group)
    assert {record.partition for record in again} == {mine.partition}
    assert again[0].offset == mine.offset


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["tail", "--topic", "orders"], "there is no topic orders: use one of orders.v1"),
        (["tail", "--type", "order.shipped"], "there is no event type order.shipped"),
        (["replay", "--topic", "orders.v1", "--group", "g"], "either --since or --offset"),
        (["replay", "--topic", "orders.v1", "--group", "g", "--since", "1d", "--offset", "1"], "either --since"),
        (
            ["replay", "--topic", "orders.v1", "--group", "g", "--offset", "1", "--partition", "16"],
            "partitions 0 to 15",
        ),
    ],
)
def test_wrong_choices_are_named(arguments: list[str], problem: str, running_stack: RunningStack) -> None:
    with pytest.raises(OperatorError, match=problem):
        run(running_stack, *arguments)


def test_the_formats_are_printed_without_a_stack() -> None:
    listed = CliRunner().invoke(app, ["schema", "--json"])
    assert [one["type"] for one in json.loads(listed.stdout)] == list(EVENT_TYPES)
    assert "order.paid" in CliRunner().invoke(app, ["schema"]).stdout
    one = CliRunner().invoke(app, ["schema", "payment.refunded"])
    assert json.loads(one.stdout) == FAMILIES["payment"].document
    wrong = CliRunner().invoke(app, ["schema", "payment.lost"])
    assert isinstance(wrong.exception, OperatorError)
