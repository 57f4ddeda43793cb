"""Payments at the edge: the provider's events, signed and forged, and what buyers see of them. At both doors."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import redis

from devstack.servers import RedisServer
from domain import ids, topology
from edge.payments import WEBHOOK_BYTES_MAX
from tests.edge.test_orders import held, place
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_edge import TOPOLOGY, WEBHOOK_SECRETS, Buyers, EdgeProcess, Publisher
from tests.workers.writing import rows

WEBHOOK = "/v1/payments/webhook"


def event_of(order: dict[str, Any], **other: object) -> dict[str, Any]:
    """The event of a payment; `other` replaces members."""
    return {
        "event_id": f"evt_{uuid4().hex}",
        "type": "payment.succeeded",
        "order_id": order["order_id"],
        "amount_minor": order["total_minor"],
        "currency": order["currency"],
    } | other


def signed(body: bytes, *secrets: str, at_s: float | None = None) -> dict[str, str]:
    """Headers with a signature for each secret."""
    stamp = str(int(time.time() if at_s is None else at_s))
    parts = [
        "v1=" + hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        for secret in secrets or WEBHOOK_SECRETS[:1]
    ]
    return {"Payment-Signature": ",".join([f"t={stamp}", *parts]), "Content-Type": "application/json"}


def tell(client: httpx.Client, event: object) -> httpx.Response:
    body = json.dumps(event).encode()
    return client.post(WEBHOOK, content=body, headers=signed(body))


@pytest.fixture
def databases(migrated: Databases) -> Iterator[Databases]:
    migrated.empty()
    yield migrated
    migrated.empty()


@pytest.fixture
def buyer() -> UUID:
    return uuid4()


@pytest.fixture
def order(
    client: httpx.Client,
    buyers: Buyers,
    publisher: Publisher,
    buyer: UUID,
    databases: Databases,  # noqa: ARG001 - empty
) -> dict[str, Any]:
    return place(client, buyers, publisher.publish(), buyer, 2)


@pytest.fixture
def headers(buyers: Buyers, buyer: UUID) -> dict[str, str]:
    return {"Authorization": f"Bearer {buyers.token(buyer)}"}


def payment_of(client: httpx.Client, order: dict[str, Any], headers: dict[str, str]) -> tuple[str, str]:
    """Status and payment of the order, as its buyer reads it alone and in the list."""
    one = client.get(f"/v1/orders/{order['order_id']}", headers=headers).json()
    (listed,) = client.get("/v1/orders", headers=headers).json()["items"]
    assert one == listed
    return one["status"], one["payment"]


def stored_payments(databases: Databases) -> list[tuple[str, str]]:
    """Event id and state of every payment."""
    return [row for dsn in databases.shard_dsns for row in rows(dsn, "SELECT event_id, state FROM payments")]


def test_a_payment_pays_and_a_repeated_event_has_no_second_effect(
    client: httpx.Client, order: dict[str, Any], headers: dict[str, str], databases: Databases
) -> None:
    event = event_of(order)
    for _ in range(3):
        answer = tell(client, event)
        assert (answer.status_code, answer.json()) == (200, {"result": "captured"}), answer.text
    assert payment_of(client, order, headers) == ("paid", "captured")
    assert stored_payments(databases) == [(event["event_id"], "captured")]
    cancel = client.post(f"/v1/orders/{order['order_id']}/cancel", headers=headers)
    assert (cancel.status_code, cancel.json()["code"]) == (409, "order_state_conflict")


async def test_the_same_event_a_hundred_times_in_parallel(
    edge: EdgeProcess, order: dict[str, Any], databases: Databases
) -> None:
    event = event_of(order)
    body = json.dumps(event).encode()
    limits = httpx.Limits(max_connections=50)
    async with httpx.AsyncClient(base_url=edge.url, timeout=20, limits=limits) as client:
        answers = await asyncio.gather(*(client.post(WEBHOOK, content=body, headers=signed(body)) for _ in range(100)))
    assert {answer.status_code for answer in answers} == {200}
    assert stored_payments(databases) == [(event["event_id"], "captured")]


def test_late_second_and_mismatching_payments_go_back(
    client: httpx.Client, buyers: Buyers, publisher: Publisher, buyer: UUID, databases: Databases
) -> None:
    sale = publisher.publish()
    headers = {"Authorization": f"Bearer {buyers.token(buyer)}"}
    late = place(client, buyers, sale, buyer)
    assert client.post(f"/v1/orders/{late['order_id']}/cancel", headers=headers).status_code == 200
    assert tell(client, event_of(late)).json() == {"result": "refund_due"}
    shown = client.get(f"/v1/orders/{late['order_id']}", headers=headers).json()
    assert (shown["status"], shown["payment"], shown["refund_due_minor"]) == ("cancelled", "refund_due", 1999)

    twice = place(client, buyers, sale, buyer)
    assert [tell(client, event_of(twice)).json()["result"] for _ in range(2)] == ["captured", "refund_due"]
    shown = client.get(f"/v1/orders/{twice['order_id']}", headers=headers).json()
    assert (shown["status"], shown["payment"], shown["refund_due_minor"]) == ("paid", "captured", 1999)

    wrong = place(client, buyers, sale, buyer)
    for other in ({"amount_minor": 1998}, {"currency": "USD"}):
        answer = tell(client, event_of(wrong, **other))
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    shown = client.get(f"/v1/orders/{wrong['order_id']}", headers=headers).json()
    assert (shown["status"], shown["payment"], shown["refund_due_minor"]) == ("reserved", "refund_due", 3997)
    assert len(stored_payments(databases)) == 5


def test_events_in_reverse_order(client: httpx.Client, order: dict[str, Any], headers: dict[str, str]) -> None:
    """A failed attempt before the payment is told after it."""
    assert tell(client, event_of(order)).status_code == 200
    answer = tell(client, event_of(order, type="payment.failed"))
    assert (answer.status_code, answer.json()) == (200, {"result": "ignored"})
    assert payment_of(client, order, headers) == ("paid", "captured")


def test_signatures_that_do_not_hold(client: httpx.Client, order: dict[str, Any], databases: Databases) -> None:
    body = json.dumps(event_of(order)).encode()
    now = time.time()
    good = signed(body)["Payment-Signature"]
    stamp, mac = good.split(",")
    refused: list[list[tuple[str, str]]] = [
        [],
        [("Payment-Signature", "")],
        [("Payment-Signature", mac)],
        [("Payment-Signature", stamp)],
        [("Payment-Signature", good[:-1])],
        [("Payment-Signature", good[:-1] + ("0" if good[-1] != "0" else "1"))],
        [("Payment-Signature", signed(body, "a-retired-secret")["Payment-Signature"])],
        [("Payment-Signature", signed(body, at_s=now - 400)["Payment-Signature"])],
        [("Payment-Signature", signed(body, at_s=now + 400)["Payment-Signature"])],
        [("Payment-Signature", f"t={int(now) - 1},{mac}")],
        [("Payment-Signature", good), ("Payment-Signature", good)],
        [("Payment-Signature", "t=1,v1=é".encode("latin-1").decode("latin-1"))],
    ]
    for names in refused:
        answer = client.post(WEBHOOK, content=body, headers=[(n.encode(), v.encode("latin-1")) for n, v in names])
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), names
    changed = body.replace(b"1999", b"2999") if b"1999" in body else body[:-2] + b"x}"
    assert client.post(WEBHOOK, content=changed, headers={"Payment-Signature": good}).status_code == 403
    assert stored_payments(databases) == []
    for holds in (signed(body, WEBHOOK_SECRETS[1]), signed(body, "a-retired-secret", *WEBHOOK_SECRETS)):
        assert client.post(WEBHOOK, content=body, headers=holds).status_code == 200


@pytest.mark.parametrize(
    "other",
    [
        {"event_id": ""}, {"event_id": 7}, {"event_id": "x" * 256}, {"event_id": "a\0b"}, {"order_id": "x"},
        {"order_id": None}, {"amount_minor": "1999"}, {"amount_minor": 0}, {"amount_minor": -1},
        {"amount_minor": 19.99}, {"amount_minor": True}, {"amount_minor": 2**63}, {"currency": "eur"},
        {"currency": "EURO"}, {"currency": None}, {"type": None},
    ],
)  # fmt: skip
def test_signed_events_that_are_malformed(
    client: httpx.Client, order: dict[str, Any], databases: Databases, other: dict[str, object]
) -> None:
    answer = tell(client, event_of(order, **other))
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed"), answer.text
    assert stored_payments(databases) == []


def test_an_unknown_order_is_to_be_told_again_and_its_money_is_kept(
    client: httpx.Client, order: dict[str, Any], buyer: UUID, databases: Databases
) -> None:
    bucket = topology.bucket_of_user(buyer)
    for order_id in (
        uuid4(),
        ids.order_id(unix_ms=1, lane=0, bucket=bucket, random=7),
        ids.order_id(unix_ms=1, lane=99, bucket=0, random=0),
    ):
        answer = tell(client, event_of(order, order_id=str(order_id)))
        assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
    assert [state for _, state in stored_payments(databases)] == ["received"], "of the id that an order can have"


def test_bodies_that_are_not_read(edge: EdgeProcess, client: httpx.Client) -> None:
    large = b"x" * (1 << 20)
    answer = client.post(WEBHOOK, content=large, headers=signed(large))
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    chunks: Callable[[], Iterator[bytes]] = lambda: iter([b"x" * 10_000] * 7)  # noqa: E731 - 70 kB without a length
    answer = client.post(WEBHOOK, content=chunks(), headers=signed(b""))
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    exact = b"x" * WEBHOOK_BYTES_MAX
    assert client.post(WEBHOOK, content=exact, headers=signed(exact)).status_code == 422, "read, but not JSON"
    answer = client.post(WEBHOOK, content=b"{}", headers={**signed(b"{}"), "Content-Encoding": "gzip"})
    assert answer.status_code == 415
    with socket.create_connection(("127.0.0.1", edge.port), timeout=10) as slow:
        slow.sendall(f"POST {WEBHOOK} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf".encode())
        assert b" 408 " in slow.recv(4096).split(b"\r\n")[0]
    assert client.get(WEBHOOK).status_code == 405


def test_the_providers_page(
    client: httpx.Client, buyers: Buyers, publisher: Publisher, order: dict[str, Any], headers: dict[str, str]
) -> None:
    """Where the provider is away, the hold goes on; an order that needs no money needs no provider."""
    path = f"/v1/orders/{order['order_id']}/payment"
    away = client.post(path, headers=headers)
    assert (away.status_code, away.json()["code"]) == (503, "dependency_unavailable")
    assert "stays reserved" in away.json()["detail"]
    other = {"Authorization": f"Bearer {buyers.token(uuid4())}"}
    assert client.post(path, headers=other).json()["code"] == "order_not_found"
    assert client.post(path).status_code == 401
    tell(client, event_of(order))
    paid = client.post(path, headers=headers)
    assert (paid.status_code, paid.json()["code"]) == (409, "order_state_conflict")

    buyer = uuid4()
    free = place(client, buyers, publisher.publish(price_minor=0), buyer)
    mine = {"Authorization": f"Bearer {buyers.token(buyer)}"}
    for _ in range(2):
        answer = client.post(f"/v1/orders/{free['order_id']}/payment", headers=mine)
        if answer.status_code == 409:
            break
        assert answer.json()["payment_url"].endswith(f"/shop/orders/{free['order_id']}")
    assert held(publisher, free["order_id"]).status.label == "paid"


def test_a_shard_that_is_away_is_told_again_and_harms_no_other(
    own_edge: Callable[..., EdgeProcess], buyers: Buyers, edge_redis: RedisServer, migrated: Databases
) -> None:
    """Money waits at the provider; the order may be paid as soon as its shard is back."""
    dsns = list(migrated.shard_dsns)
    dsns[0] = "postgresql://nobody@127.0.0.1:1/none?connect_timeout=1"
    with redis.Redis(port=edge_redis.port) as in_redis:
        publisher = Publisher(in_redis)
        started = own_edge(
            redis_url=edge_redis.url, shard_dsns=",".join(dsns), payment_provider="simulated",
            payment_url="http://127.0.0.1:1", payment_api_key="key-of-the-tests",
            payment_webhook_secrets=WEBHOOK_SECRETS[0],
        )  # fmt: skip
        sale = publisher.publish(stock=1000)
        with httpx.Client(base_url=started.url, timeout=10) as client:
            answers: dict[bool, set[int]] = {True: set(), False: set()}
            while not all(answers.values()):
                buyer = uuid4()
                order = place(client, buyers, sale, buyer)
                answer = tell(client, event_of(order))
                answers[TOPOLOGY.shard_of_user(buyer) == 0].add(answer.status_code)
            metrics = client.get("/metrics").text
    migrated.empty()
    assert answers == {True: {503}, False: {200}}
    assert 'result="unavailable"' in metrics and 'result="captured"' in metrics


def test_without_a_provider_no_event_is_taken(
    own_edge: Callable[..., EdgeProcess], edge_redis: RedisServer, migrated: Databases
) -> None:
    started = own_edge(redis_url=edge_redis.url, shard_dsns=",".join(migrated.shard_dsns))
    answer = httpx.post(f"{started.url}{WEBHOOK}", content=b"{}", headers=signed(b"{}"))
    assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")
