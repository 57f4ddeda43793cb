"""Refunds and cancellations by staff: each line once, also after two clicks at once; units on sale again on request."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from unittest.mock import AsyncMock, MagicMock
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
import redis
from pydantic import SecretStr

from backoffice.orders.changes import OrderChanges
from backoffice.sales.service import SaleMissing
from domain import ids, topology
from domain.orders import OrderStatus
from domain.outcomes import Outcome
from domain.sales import STOCK_MAX, SaleDefinition
from payments.staff_refunds import ToRestock
from runtime.postgres.pool import postgres_pool
from tests.backoffice.sale_probes import code, document, lane_of, ledger, stock
from tests.fixtures.fix_backoffice import Staff
from tests.fixtures.fix_databases import Databases
from tests.reservation.lane import LaneClient, make_request
from tests.workers.writing import rows

TOPOLOGY = topology.Topology()


class Killed(BaseException):
    """The process ends here."""


_INSERT = """
INSERT INTO orders (id, user_id, sale_id, bucket, idempotency_key, status, version, epoch, currency, total_minor, lines,
                    reserved_at, expires_at, changed_at, lane, charged)
VALUES (%s, %s, %s, %s, 'key', %s, 2, 1, 'EUR', %s, %s, now(), now(), now(), 0, %s)
"""


def shard_of(databases: Databases, order_id: str) -> str:
    return databases.shard_dsns[TOPOLOGY.shard_of_order(UUID(order_id))]


def sold(
    databases: Databases, sale: dict[str, Any], *, status: OrderStatus = OrderStatus.PAID, captured: bool = True
) -> str:
    """An order of two units of each SKU at 5.00, stored, and usually with its payment; the id."""
    user = uuid4()
    order_id = ids.order_id(unix_ms=1, lane=lane_of(sale), bucket=topology.bucket_of_user(user), random=uuid4().int)
    lines = [{"sku": item["sku"], "quantity": 2, "unit_price_minor": 500} for item in sale["items"]]
    total = 1000 * len(lines)
    with psycopg.connect(shard_of(databases, str(order_id))) as connection:
        charged = status in (OrderStatus.RESERVED, OrderStatus.PAID)
        row = (order_id, user, sale["id"], ids.bucket_of(order_id), int(status), total, json.dumps(lines), charged)
        connection.execute(_INSERT, row)
        if captured:
            connection.execute(
                """INSERT INTO payments (event_id, order_id, user_id, sale_id, provider, reference, amount_minor,
                       currency, state, settles)
                   VALUES (%s, %s, %s, %s, 'simulated', '', %s, 'EUR', 'captured', true)""",
                (f"evt-{order_id}", order_id, user, sale["id"], total),
            )
    return str(order_id)


def refund(staff: Staff, order_id: str, *, key: str | None = None, **body: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key or uuid4().hex}
    return staff.http.post(f"/v1/orders/{order_id}/refund", json=body, headers=headers)


def outbox(databases: Databases, order_id: str) -> list[tuple[str, str, int | None]]:
    """Destination, type and amount of everything that is to be told."""
    found = rows(shard_of(databases, order_id), "SELECT destination, events FROM outbox ORDER BY id")
    return [(to, event["type"], event["data"].get("amount_minor")) for to, events in found for event in events]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_whole_refund_once_whoever_clicks_twice(
    staff: Staff, databases: Databases, redis_client: redis.Redis
) -> None:
    sale = staff.open_sale(stock=10, skus=2)
    order_id = sold(databases, sale)
    before = staff.http.get(f"/v1/orders/{order_id}").json()
    assert (before["payment"], before["refunds"]) == ("captured", [])
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: refund(staff, order_id), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    assert {code(answer) for answer in answers if answer.status_code == 409} == {(409, "order_state_conflict")}
    (done,) = [answer.json() for answer in answers if answer.status_code == 200]
    assert (done["status"], done["payment"]) == ("paid", "refund_due")
    assert [(one["amount_minor"], one["reason"], one["state"]) for one in done["refunds"]] == [(2000, "staff", "due")]
    assert sorted(outbox(databases, order_id)) == [
        ("events.payments", "payment.refund_due", 2000),
        ("refunds", "refund.due", None),
    ]
    assert redis_client.exists(topology.payment_mark_key(UUID(order_id))), "buyers see it"
    assert stock(redis_client, sale).available == 10, "no unit is put back unless staff ask for it"
    entries = staff.http.get("/v1/audit", params={"object": f"order:{order_id}"}).json()["items"]
    assert [entry["outcome"] for entry in entries if entry["action"] == "order.refund"].count("done") == 1


def test_the_same_key_is_the_same_refund(staff: Staff, databases: Databases) -> None:
    order_id = sold(databases, staff.open_sale(skus=2))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: refund(staff, order_id, key="k"), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert all(len(answer.json()["refunds"]) == 1 for answer in answers)
    assert code(refund(staff, order_id, key="k", restock=True)) == (422, "idempotency_key_reused")
    assert code(staff.http.post(f"/v1/orders/{order_id}/refund", json={})) == (400, "idempotency_key_missing")


def test_each_line_once(staff: Staff, databases: Databases) -> None:
    sale = staff.open_sale(skus=3)
    order_id = sold(databases, sale)
    first, second, third = (item["sku"] for item in sale["items"])
    part = refund(staff, order_id, lines=[first])
    assert (part.json()["payment"], part.json()["refunds"][0]["lines"]) == ("captured", [first])
    for lines in ([first], [{"sku": first, "quantity": 2}], [second, first]):
        assert code(refund(staff, order_id, lines=lines)) == (409, "order_state_conflict")
    assert refund(staff, order_id, lines=[{"sku": second}]).status_code == 200
    rest = refund(staff, order_id).json()
    assert [one["lines"] for one in rest["refunds"]] == [[first], [second], [third]]
    assert (rest["payment"], rest["payments"][0]["due_minor"]) == ("refund_due", 3000)
    assert code(refund(staff, order_id)) == (409, "order_state_conflict")
    bad: list[Any] = [[], ["no-such"], [second, second], [{"sku": second, "quantity": 1}], ["a b"], [7], "x"]
    for lines in bad:
        assert code(refund(staff, order_id, lines=lines)) == (422, "validation_failed"), lines


@pytest.mark.parametrize("status", [OrderStatus.RESERVED, OrderStatus.CANCELLED, OrderStatus.EXPIRED])
def test_only_paid_orders_are_refunded(staff: Staff, databases: Databases, status: OrderStatus) -> None:
    order_id = sold(databases, staff.open_sale(), status=status)
    assert code(refund(staff, order_id)) == (409, "order_state_conflict")
    assert code(refund(staff, str(uuid4()))) == (404, "order_not_found")
    assert code(refund(staff, sold(databases, staff.open_sale(), captured=False))) == (409, "order_state_conflict")


def test_a_payment_that_goes_back_as_a_whole_or_an_order_that_is_not_stored_is_not_refunded_by_staff(
    staff: Staff, databases: Databases, redis_client: redis.Redis
) -> None:
    sale = staff.open_sale()
    back = sold(databases, sale)
    with psycopg.connect(shard_of(databases, back)) as connection:
        connection.execute(
            "UPDATE payments SET state = 'refund_due', due_minor = amount_minor WHERE order_id = %s", (back,)
        )
    assert code(refund(staff, back)) == (409, "order_state_conflict")
    early = sold(databases, sale)
    with psycopg.connect(shard_of(databases, early)) as connection:
        connection.execute("UPDATE orders SET status = 0, version = 1 WHERE id = %s", (early,))
    definition: SaleDefinition = document(redis_client, sale)
    with psycopg.connect(shard_of(databases, early)) as connection:
        (user,) = connection.execute("SELECT user_id FROM orders WHERE id = %s", (early,)).fetchone() or (None,)
    assert user is not None
    request = make_request(definition, user, "key", order_id=UUID(early), lane=lane_of(sale))
    lane = LaneClient(redis_client, lane_of(sale))
    assert lane.outcome(request) is Outcome.ACCEPTED
    held = lane.order(UUID(early))
    assert held is not None
    lane.change("settle-5", held)
    assert code(refund(staff, early)) == (503, "dependency_unavailable")


def test_units_that_are_put_back_sell_again_at_once(
    staff: Staff, databases: Databases, redis_client: redis.Redis
) -> None:
    sale = staff.open_sale(stock=10, skus=2)
    order_id = sold(databases, sale)
    second = sale["items"][1]["sku"]
    for _ in range(2):
        assert refund(staff, order_id, key="k", lines=[second], restock=True).status_code == 200
    assert [stock(redis_client, sale, place).available for place in (0, 1)] == [10, 12]
    assert ledger(databases, sale) == {sale["items"][0]["sku"]: 10, second: 12}
    assert rows(shard_of(databases, order_id), "SELECT restock, restock_due FROM refunds") == [(True, False)]
    staff.act(sale, "end")
    again = refund(staff, order_id, key="k", lines=[second], restock=True)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true"), "also after the sale's end"
    assert code(refund(staff, order_id, restock=True)) == (409, "sale_state_conflict")
    assert refund(staff, order_id).status_code == 200, "nothing was changed by the refusal"


def test_an_interrupted_restock_is_taken_up(staff: Staff, databases: Databases, redis_client: redis.Redis) -> None:
    """As if the process had ended between the refund and the restock, or between the restock and its note."""
    sale = staff.open_sale(stock=10)
    never, noted_not = sold(databases, sale), sold(databases, sale)
    assert refund(staff, never).status_code == refund(staff, noted_not, restock=True).status_code == 200
    for order_id in (never, noted_not):
        with psycopg.connect(shard_of(databases, order_id)) as connection:
            connection.execute(
                "UPDATE refunds SET restock = true, restock_due = true, created_at = now() - interval '1 minute'"
                " WHERE order_id = %s",
                (order_id,),
            )
    _until(lambda: not any(rows(dsn, "SELECT 1 FROM refunds WHERE restock_due") for dsn in databases.shard_dsns))
    assert stock(redis_client, sale).available == 14
    assert ledger(databases, sale) == {sale["items"][0]["sku"]: 14}


def test_units_that_no_longer_fit_leave_the_refund_made(staff: Staff, databases: Databases) -> None:
    sale = staff.open_sale(stock=10)
    order_id = sold(databases, sale)
    with psycopg.connect(databases.catalogue_dsn) as connection:
        connection.execute("UPDATE stock_ledger SET stock = %s WHERE sale_id = %s", (STOCK_MAX, sale["id"]))
    assert refund(staff, order_id, restock=True).status_code == 200
    assert rows(shard_of(databases, order_id), "SELECT restock, restock_due FROM refunds") == [(True, False)]


async def test_a_shard_or_a_refund_that_fails_holds_up_no_other_restock(monkeypatch: pytest.MonkeyPatch) -> None:
    away, works = MagicMock(), MagicMock()
    away.connection.side_effect = psycopg.OperationalError("away")
    waiting = [ToRestock(uuid4(), uuid4(), uuid4(), ["SKU-1"], uuid4()) for _ in range(3)]
    monkeypatch.setattr("backoffice.orders.changes.to_restock", AsyncMock(return_value=waiting))
    put_back = AsyncMock(side_effect=[None, SaleMissing, None])
    monkeypatch.setattr(OrderChanges, "put_back", put_back)
    changes = OrderChanges(MagicMock(shards=[away, works]), AsyncMock(), AsyncMock())
    assert await changes.finish_restocks() == 2
    assert [call.args[0] for call in put_back.await_args_list] == waiting


async def test_refunds_that_cannot_be_restocked_hold_up_no_younger_one(
    staff: Staff, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round takes some refunds of a shard; the oldest ones failed in every round, and no other had its turn."""
    monkeypatch.setattr("backoffice.orders.changes.RESTOCKS_MAX", 3)
    sale = staff.open_sale(stock=10)
    by_shard: dict[str, list[str]] = {}
    while max((len(orders) for orders in by_shard.values()), default=0) < 4:
        order_id = sold(databases, sale)
        by_shard.setdefault(shard_of(databases, order_id), []).append(order_id)
    dsn, orders = max(by_shard.items(), key=lambda item: len(item[1]))
    for order_id in orders:
        assert refund(staff, order_id).status_code == 200
        with psycopg.connect(dsn) as connection:
            due = "UPDATE refunds SET restock = true, restock_due = true WHERE order_id = %s"
            connection.execute(due, (order_id,))

    looked_at: list[str] = []

    async def put_back(_: OrderChanges, waiting: ToRestock, order: object) -> None:  # noqa: ARG001 - the signature
        looked_at.append(str(waiting.order_id))
        if str(waiting.order_id) != orders[-1]:
            raise SaleMissing

    monkeypatch.setattr(OrderChanges, "put_back", put_back)
    async with postgres_pool(SecretStr(dsn), size_max=1) as pool:
        orders_service = AsyncMock(get=AsyncMock(return_value=(None, [])))
        changes = OrderChanges(MagicMock(shards=[pool]), orders_service, AsyncMock())
        rounds = [await changes.finish_restocks(settled=timedelta(0)) for _ in range(4)]
    assert looked_at == [*orders, *orders] and rounds == [0, 1, 0, 1]


def test_staff_cancel_a_reserved_order(staff: Staff, databases: Databases, redis_client: redis.Redis) -> None:
    sale = staff.open_sale(stock=10)
    definition: SaleDefinition = document(redis_client, sale)
    request = make_request(definition, uuid4(), "key", lane=lane_of(sale))
    assert LaneClient(redis_client, lane_of(sale)).outcome(request) is Outcome.ACCEPTED
    assert stock(redis_client, sale).available == 9
    path = f"/v1/orders/{request.order.order_id}/cancel"
    assert code(staff.http.post(path)) == (400, "idempotency_key_missing")
    for key in ("a", "a", "b"):
        answer = staff.http.post(path, headers={"Idempotency-Key": key})
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert stock(redis_client, sale).available == 10
    name = f"order:{request.order.order_id}"
    entries = staff.http.get("/v1/audit", params={"object": name, "action": "order.cancel"}).json()["items"]
    assert [entry["outcome"] for entry in entries] == ["done", "begun"], "newest first; a repeated request adds none"
    paid = sold(databases, sale)
    answer = staff.http.post(f"/v1/orders/{paid}/cancel", headers={"Idempotency-Key": "c"})
    assert code(answer) == (409, "order_state_conflict")
    answer = staff.http.post(f"/v1/orders/{uuid4()}/cancel", headers={"Idempotency-Key": "c"})
    assert code(answer) == (404, "order_not_found")


async def test_a_cancel_that_redis_made_is_in_the_audit_log_also_after_a_crash(
    staff: Staff, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends when Redis has changed the order, before the shard knows."""
    sale = staff.open_sale(stock=10)
    order_id = sold(databases, sale, status=OrderStatus.RESERVED, captured=False)
    lanes = MagicMock(cancel=AsyncMock(side_effect=Killed))
    monkeypatch.setattr("backoffice.orders.changes.Lanes", MagicMock(return_value=lanes))
    order = MagicMock(id=UUID(order_id), status=int(OrderStatus.RESERVED), sale_id=UUID(sale["id"]))
    async with postgres_pool(SecretStr(shard_of(databases, order_id)), size_max=1) as pool:
        stores = MagicMock(shards=[pool], shard_of_order=MagicMock(return_value=pool))
        changes = OrderChanges(stores, AsyncMock(get=AsyncMock(return_value=(order, []))), AsyncMock())
        with pytest.raises(Killed):
            await changes.cancel(UUID(order_id))
    entries = staff.http.get("/v1/audit", params={"object": f"order:{order_id}"}).json()["items"]
    assert [(entry["action"], entry["outcome"]) for entry in entries] == [("order.cancel", "begun")]
