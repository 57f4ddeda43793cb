"""The peers of the gate are competitors that work: no unit is sold twice, and each 202 is an order in the stream."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest

from domain import ids
from perf.driver.loop import Loop
from perf.load import write_tokens
from perf.peers.building import LANGUAGES
from perf.peers.running import Peer, running_peer
from runtime.tokens.keys import create_token_keys

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # a first build takes minutes
SALE = ids.new_uuid7()
UNITS = 50
CROWD_UNITS = 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peers")


@pytest.fixture(scope="module", params=list(LANGUAGES))
def peer(request: pytest.FixtureRequest, folder: Path, tokens: list[str]) -> Iterator[Peer]:
    if shutil.which(LANGUAGES[request.param].tool) is None:
        pytest.skip(f"{LANGUAGES[request.param].tool} is not installed")
    assert tokens
    stock = {"SKU-1": UNITS, "GONE": 0}
    with running_peer(request.param, folder, keys_file=folder / "keys.json", sale_id=SALE, stock=stock) as running:
        yield running


@pytest.fixture(scope="module")
def tokens(folder: Path) -> list[str]:
    create_token_keys(folder / "keys.json")
    write_tokens(folder / "tokens.tsv", folder / "keys.json", users=20)
    return [line.partition("\t")[2] for line in (folder / "tokens.tsv").read_text().splitlines()]


def order(
    peer: Peer, token: str, *, sku: str = "SKU-1", key: str | None = None, quantity: object = 1
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": key or str(uuid4())}
    body = {"items": [{"sku": sku, "quantity": quantity}]}
    return httpx.post(f"{peer.url}/v1/sales/{SALE}/orders", json=body, headers=headers, timeout=20)


def test_refusals(peer: Peer, tokens: list[str]) -> None:
    assert order(peer, tokens[0], sku="GONE").json()["code"] == "sold_out"
    assert order(peer, tokens[0], sku="NONE").status_code == 404
    assert order(peer, tokens[0][:-4] + "AAAA").status_code == 401
    for quantity in (0, 101, "1", 1.5):
        assert order(peer, tokens[0], quantity=quantity).status_code == 422
    assert peer.orders() == 0


def test_a_crowd_buys_each_unit_once(peer: Peer, tokens: list[str]) -> None:
    first = order(peer, tokens[0], key="twice")
    again = order(peer, tokens[0], key="twice")
    assert first.status_code == again.status_code == 202 and first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true" and "idempotency-replayed" not in first.headers
    assert set(first.json()) == {
        "order_id", "sale_id", "status", "items", "total_minor", "currency", "reserved_at", "expires_at",
    }  # fmt: skip
    with ThreadPoolExecutor(16) as crowd:
        answers = list(crowd.map(lambda number: order(peer, tokens[number % len(tokens)]), range(3 * UNITS)))
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses == {202: UNITS - 1, 409: 2 * UNITS + 1}
    promised = {answer.json()["order_id"] for answer in (first, *answers) if answer.status_code == 202}
    stored = {json.loads(fields["order"])["order_id"] for _, fields in peer.redis.xrange("orders")}  # type: ignore[union-attr]
    assert stored == promised and peer.orders() == UNITS


def test_a_crowd_on_open_connections_finds_each_of_its_orders(peer: Peer, tokens: list[str], tmp_path: Path) -> None:
    """More buyers at once than one batch, until the stock is gone: as in the gate, with the id of each 202."""
    before = peer.orders()
    peer.redis.set("stock:CROWD", CROWD_UNITS)
    with (tmp_path / "promised").open("wb") as record:
        loop = Loop(
            host="127.0.0.1", port=urlsplit(peer.url).port or 0, paths=[f"/v1/sales/{SALE}/orders"], connections=64,
            prefix="crowd", tokens=[token.encode() for token in tokens],
            bodies=[b'{"items":[{"sku":"CROWD","quantity":1}]}'], record_fd=record.fileno(),
        )  # fmt: skip
        loop.run_orders(CROWD_UNITS + 500, 60.0)
        assert loop.finish(20.0) == 0
    assert loop.codes_seen() == {(202, ""): CROWD_UNITS, (409, "sold_out"): loop.refused} and loop.refused > 0
    promised = {line.partition("\t")[0] for line in (tmp_path / "promised").read_text().splitlines()}
    entries = [json.loads(fields["order"]) for _, fields in peer.redis.xrange("orders")]  # type: ignore[union-attr]
    stored = [entry["order_id"] for entry in entries if entry["items"][0]["sku"] == "CROWD"]
    assert len(stored) == len(promised) == CROWD_UNITS == peer.orders() - before and set(stored) == promised
    assert peer.redis.get("stock:CROWD") == "0"


def test_peers_run_as_the_edge_does(peer: Peer) -> None:
    policies = {os.sched_getscheduler(int(task.name)) for task in Path(f"/proc/{peer.process.pid}/task").iterdir()}
    assert policies == {os.SCHED_BATCH}
