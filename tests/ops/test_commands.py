"""Operations on a stack that is up."""

from __future__ import annotations

import json
import shlex
import subprocess

import httpx
import pytest

from devstack.state import StateFolder
from tests.fixtures.fix_databases import audited
from tests.fixtures.fix_stack import RunningStack, eventually, flashsale


def test_sample_sale_can_be_bought_from_with_the_printed_line(running_stack: RunningStack) -> None:
    sample = json.loads(running_stack.flashsale("sample-sale", "--units", "5", "--json").stdout)
    eventually(lambda: httpx.get(sample["sale_url"]).status_code == 200)  # the edge knows the sale
    done = subprocess.run(shlex.split(sample["curl"]), capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith("HTTP/1.1 202")
    assert json.loads(done.stdout.partition("\n\n")[2])["items"] == [
        {"sku": sample["sku"], "quantity": 1, "unit_price_minor": 1999}
    ]


def test_mint_tokens_prints_a_line_per_user(running_stack: RunningStack) -> None:
    lines = running_stack.flashsale("mint-tokens", "--users", "5000").stdout.splitlines()
    assert len({line.split("\t")[0] for line in lines}) == 5000
    assert all(line.split("\t")[1].count(".") == 2 for line in lines)


def test_minted_token_is_accepted_by_the_edge(running_stack: RunningStack) -> None:
    _, token = running_stack.flashsale("mint-tokens", "--users", "1").stdout.strip().split("\t")
    answer = httpx.get(f"{running_stack.stack.edge_url}/v1/orders", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json()) == (200, {"items": [], "next_cursor": None})


def test_keys_rotate_under_a_running_stack(running_stack: RunningStack) -> None:
    _, before = running_stack.flashsale("mint-tokens", "--users", "1").stdout.strip().split("\t")
    done = json.loads(running_stack.flashsale("rotate-keys", "--json").stdout)
    assert done["buyer"]["processes"] == ["backoffice", "edge"] and done["staff"]["processes"] == ["backoffice"]
    _, after = running_stack.flashsale("mint-tokens", "--users", "1").stdout.strip().split("\t")
    for token in (before, after):
        url = f"{running_stack.stack.edge_url}/v1/orders"
        assert httpx.get(url, headers={"Authorization": f"Bearer {token}"}).status_code == 200
    for ring in ("buyer", "staff"):
        entries = audited(running_stack.stack.catalogue_dsn, f"keys:{ring}")
        assert entries[-2:] == [("keys.rotate", "begun"), ("keys.rotate", "done")]


def test_migrate_finds_a_running_stack_up_to_date(running_stack: RunningStack) -> None:
    applied = json.loads(running_stack.flashsale("migrate", "--json").stdout)
    assert applied == {name: [] for name in ("catalogue", "shard_0", "shard_1", "shard_2", "shard_3", "analytics")}


def test_reconcile_judges_the_stack(running_stack: RunningStack) -> None:
    done = running_stack.flashsale("reconcile", "--json")
    assert json.loads(done.stdout) is not None


def test_what_is_no_sale_id_is_wrong_usage(running_stack: RunningStack) -> None:
    done = running_stack.flashsale("reconcile", "--sale", "x", check=False)
    assert done.returncode == 2
    assert "--sale" in done.stderr and "workers" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [("sample-sale",), ("mint-tokens", "--users", "1"), ("migrate",), ("reconcile",)], ids=lambda a: a[0]
)
def test_without_a_stack_a_command_says_what_to_do(
    tmp_path_factory: pytest.TempPathFactory, arguments: tuple[str, ...]
) -> None:
    done = flashsale(StateFolder(tmp_path_factory.mktemp("none")), *arguments, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("flashsale: ") and "flashsale up" in done.stderr
    assert "Traceback" not in done.stderr
