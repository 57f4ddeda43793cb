"""The peers of the gate are competitors that work: no unit is sold twice, and each 202 is an order in the stream."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from domain import ids
from perf.load import write_tokens
from perf.peers.building import LANGUAGES
from perf.peers.running import Peer, running_peer
from runtime.tokens.keys import create_token_keys

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # a first build takes minutes
SALE = ids.new_uuid7()
UNITS = 50


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
