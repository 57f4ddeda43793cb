"""Sales over HTTP: life cycle, what may change when, restock, report, bad input, races."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
import redis

from domain import topology
from domain.sales import STOCK_MAX, LaneSaleState, SaleDefinition, Stock
from domain.topology import Topology
from reservation import scripts
from tests.fixtures.fix_backoffice import Staff
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_stack import eventually

GOOD: dict[str, Any] = {
    "name": "Sale",
    "starts_at": "2020-01-01T00:00:00Z",
    "ends_at": "2099-01-01T00:00:00Z",
    "hold_seconds": 600,
    "items": [{"sku": "SKU-1", "stock": 5, "price_minor": 500, "per_user_limit": 2}],
}


def ahead(**delta: float) -> str:
    return (datetime.now(UTC) + timedelta(**delta)).isoformat()


def code(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json().get("code")


def document(client: redis.Redis, sale: dict[str, Any]) -> SaleDefinition:
    raw = client.get(topology.sale_key(UUID(sale["id"])))
    assert isinstance(raw, bytes)
    return SaleDefinition.from_document(json.loads(raw))


def lane_of(sale: dict[str, Any]) -> int:
    return Topology().lanes_of_sale(UUID(sale["id"]), count=1)[0]


def stock(client: redis.Redis, sale: dict[str, Any], index: int = 0) -> Stock:
    raw = client.hget(topology.lane_state_key(lane_of(sale)), topology.stock_field(UUID(sale["id"]), index))
    assert isinstance(raw, bytes)
    return Stock.unpack(raw)


def lane_definition(client: redis.Redis, sale: dict[str, Any]) -> bytes:
    raw = client.hget(topology.lane_state_key(lane_of(sale)), topology.definition_field(UUID(sale["id"])))
    assert isinstance(raw, bytes)
    return raw


def ledger(databases: Databases, sale: dict[str, Any]) -> dict[str, int]:
    with psycopg.connect(databases.catalogue_dsn) as connection:
        return dict(
            connection.execute("SELECT sku, stock FROM stock_ledger WHERE sale_id = %s", (sale["id"],)).fetchall()
        )


def test_life_of_a_sale(staff: Staff, redis_client: redis.Redis, databases: Databases) -> None:
    pubsub = redis_client.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe(topology.SALES_CHANNEL)
    pubsub.get_message(timeout=5)
    draft = staff.draft(stock=7, skus=2)
    assert draft["state"] == "draft"
    assert set(draft) >= {"id", "name", "state", "starts_at", "ends_at", "hold_seconds", "items"}
    assert [set(item) for item in draft["items"]] == [{"sku", "stock", "price_minor", "per_user_limit"}] * 2
    assert redis_client.keys("*sale*") == []
    assert ledger(databases, draft) == {}
    for verb in ("pause", "resume", "end"):
        assert code(staff.act(draft, verb)) == (409, "sale_state_conflict")

    published = staff.act(draft, "publish")
    assert published.json() == {**draft, "state": "open"}
    definition = document(redis_client, draft)
    assert lane_definition(redis_client, draft) == definition.pack_for_lane()
    assert (definition.state, definition.currency, definition.hold_ms) == (LaneSaleState.RUNNING, "EUR", 600_000)
    assert [item.sku for item in definition.items] == [item["sku"] for item in draft["items"]]
    assert stock(redis_client, draft, 1) == Stock.fresh(7)
    assert ledger(databases, draft) == {item["sku"]: 7 for item in draft["items"]}
    assert redis_client.smembers(topology.SALES_KEY) == {draft["id"].encode()}
    message = pubsub.get_message(timeout=5)
    assert message is not None
    assert message["data"] == draft["id"].encode()

    version = definition.version
    for verb, state, lane_state in (
        ("pause", "paused", LaneSaleState.PAUSED),
        ("pause", "paused", LaneSaleState.PAUSED),
        ("resume", "open", LaneSaleState.RUNNING),
        ("publish", "open", LaneSaleState.RUNNING),
        ("end", "ended", LaneSaleState.ENDED),
        ("end", "ended", LaneSaleState.ENDED),
        ("publish", "ended", LaneSaleState.ENDED),
    ):
        answer = staff.act(draft, verb)
        assert (answer.status_code, answer.json()["state"]) == (200, state)
        definition = document(redis_client, draft)
        assert definition.state == lane_state
        assert lane_definition(redis_client, draft) == definition.pack_for_lane()
    assert definition.version == version + 3  # repeated requests change nothing
    for verb in ("pause", "resume"):
        assert code(staff.act(draft, verb)) == (409, "sale_state_conflict")
    assert code(staff.http.patch(f"/v1/sales/{draft['id']}", json={"name": "x"})) == (409, "sale_state_conflict")
    body = {"sku": draft["items"][0]["sku"], "quantity": 1}
    restock = staff.http.post(f"/v1/sales/{draft['id']}/restock", json=body, headers={"Idempotency-Key": "k"})
    assert code(restock) == (409, "sale_state_conflict")
    pubsub.close()


def test_states_follow_the_clock_of_redis(staff: Staff, redis_client: redis.Redis) -> None:
    seconds, microseconds = redis_client.time()
    soon = datetime.fromtimestamp(seconds + microseconds / 1e6 + 0.6, UTC)
    window = {"starts_at": soon.isoformat(), "ends_at": (soon + timedelta(seconds=0.6)).isoformat()}
    sale = staff.open_sale(**window)
    assert sale["state"] == "scheduled"
    assert code(staff.act(sale, "pause")) == (409, "sale_state_conflict")  # only an open one
    assert staff.act(sale, "resume").json()["state"] == "scheduled"  # nothing to do
    seen = ["scheduled"]
    while seen[-1] != "ended":
        state = staff.http.get(f"/v1/sales/{sale['id']}").json()["state"]
        if state != seen[-1]:
            seen.append(state)
        time.sleep(0.02)
    assert seen == ["scheduled", "open", "ended"]
    assert code(staff.act(sale, "pause")) == (409, "sale_state_conflict")
    later = staff.http.patch(f"/v1/sales/{sale['id']}", json={"ends_at": "2099-01-01T00:00:00Z"})
    assert code(later) == (409, "sale_state_conflict")  # what is over stays over
    assert staff.act(sale, "end").json()["state"] == "ended"


def test_a_draft_may_change_wholly(staff: Staff) -> None:
    sale = staff.draft()
    staff.product(sku="OTHER", currency="EUR")
    items = [{"sku": "OTHER", "stock": 3, "price_minor": 1, "per_user_limit": 0}]
    path = f"/v1/sales/{sale['id']}"
    changed = staff.http.patch(path, json={"name": "New", "hold_seconds": 5, "items": items, "lanes": 1})
    assert changed.status_code == 200
    assert changed.json() == {**sale, "name": "New", "hold_seconds": 5, "items": items}
    assert staff.http.patch(path, json={}).json() == changed.json()
    for body in (
        {"name": None},
        {"items": []},
        {"hold_seconds": 0},
        {"starts_at": "2100-01-01T00:00:00Z"},
        {"ends_at": "2019-01-01T00:00:00Z"},
        {"items": [{**items[0], "sku": "NOWHERE"}]},
        {"state": "open"},
    ):
        assert code(staff.http.patch(path, json=body)) == (422, "validation_failed"), body
    assert staff.http.get(path).json() == changed.json()


def test_a_published_sale_takes_name_and_window_only(staff: Staff, redis_client: redis.Redis) -> None:
    sale = staff.open_sale(starts_at=ahead(hours=1), ends_at=ahead(hours=2))
    path = f"/v1/sales/{sale['id']}"
    before = document(redis_client, sale)
    for body, named in (
        ({"items": sale["items"]}, "items"),
        ({"hold_seconds": 5}, "hold_seconds"),
        ({"lanes": 1}, "lanes"),
        ({"name": "New", "hold_seconds": 5}, "hold_seconds"),
    ):
        refused = staff.http.patch(path, json=body)
        assert code(refused) == (409, "sale_state_conflict")
        assert named in refused.json()["detail"]
    assert document(redis_client, sale) == before
    opened = staff.http.patch(path, json={"name": "New", "starts_at": "2020-01-01T00:00:00Z"})
    assert (opened.json()["name"], opened.json()["state"]) == ("New", "open")
    after = document(redis_client, sale)
    assert (after.name, after.version) == ("New", before.version + 1)
    assert lane_definition(redis_client, sale) == after.pack_for_lane()
    moved = staff.http.patch(path, json={"starts_at": ahead(minutes=5)})
    assert code(moved) == (409, "sale_state_conflict")  # it has begun
    longer = staff.http.patch(path, json={"ends_at": "2098-01-01T00:00:00Z", "starts_at": "2020-01-01T00:00:00Z"})
    assert longer.json()["ends_at"] == "2098-01-01T00:00:00.000Z"
    assert code(staff.http.patch(path, json={"ends_at": "2021-01-01T00:00:00Z"})) == (422, "validation_failed")


def test_concurrent_changes_all_take_effect(staff: Staff, redis_client: redis.Redis) -> None:
    sale = staff.open_sale()
    before = document(redis_client, sale).version
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda n: staff.http.patch(f"/v1/sales/{sale['id']}", json={"name": f"Sale {n}"}), range(4))
        )
    done = [answer for answer in answers if answer.status_code == 200]
    assert {code(answer) for answer in answers if answer not in done} <= {(409, "sale_state_conflict")}
    after = document(redis_client, sale)
    assert after.version == before + len(done)
    assert after.name == staff.http.get(f"/v1/sales/{sale['id']}").json()["name"]
    assert lane_definition(redis_client, sale) == after.pack_for_lane()


def waiting_for_locks(databases: Databases) -> int:
    with psycopg.connect(databases.catalogue_dsn) as connection:
        waiting = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ).fetchone()
    assert waiting is not None
    return int(waiting[0])


@pytest.mark.parametrize("published", [True, False])
def test_two_changes_of_the_window_that_only_together_are_wrong(
    staff: Staff, databases: Databases, published: bool
) -> None:
    window: dict[str, Any] = {"starts_at": "2090-01-01T11:00:00Z", "ends_at": "2090-01-01T13:00:00Z"}
    sale = staff.open_sale(**window) if published else staff.draft(**window)
    bodies = [{"starts_at": "2090-01-01T12:00:00.000Z"}, {"ends_at": "2090-01-01T11:30:00.000Z"}]
    path = f"/v1/sales/{sale['id']}"
    with ThreadPoolExecutor(2) as pool, psycopg.connect(databases.catalogue_dsn) as connection:
        connection.execute("SELECT 1 FROM sales WHERE id = %s FOR UPDATE", (sale["id"],))
        asked = [pool.submit(staff.http.patch, path, json=body) for body in bodies]
        eventually(lambda: waiting_for_locks(databases) == 2)  # both have read the sale as it is
        connection.commit()
        answers = [one.result() for one in asked]
    assert sorted(answer.status_code for answer in answers) == [200, 422], [answer.text for answer in answers]
    refused = next(place for place, answer in enumerate(answers) if answer.status_code == 422)
    problem = answers[refused].json()
    (member,) = bodies[refused]
    assert (problem["code"], problem["errors"][0]["pointer"]) == ("validation_failed", f"/{member}")
    assert staff.http.get(path).json() == {**sale, **bodies[1 - refused]}


def test_what_is_wrong_with_a_window_is_told_of_what_was_sent(staff: Staff) -> None:
    sale = staff.open_sale(starts_at="2090-01-01T11:00:00Z", ends_at="2090-01-01T13:00:00Z")
    draft = staff.draft(ends_at="2090-01-01T13:00:00Z")
    late = {"starts_at": "2091-01-01T00:00:00Z"}
    for change in (sale, draft):
        for body in (late, {"ends_at": "2019-01-01T00:00:00Z"}, {"starts_at": "1969-01-01T00:00:00Z"}):
            answer = staff.http.patch(f"/v1/sales/{change['id']}", json=body)
            assert code(answer) == (422, "validation_failed")
            assert {error["pointer"] for error in answer.json()["errors"]} == {f"/{name}" for name in body}
    # What is over does not change any more, whatever is wrong with the wish.
    staff.act(sale, "end")
    assert code(staff.http.patch(f"/v1/sales/{sale['id']}", json=late)) == (409, "sale_state_conflict")


def test_publishing_at_once_loads_once(staff: Staff, redis_client: redis.Redis, databases: Databases) -> None:
    sale = staff.draft(stock=9)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: staff.act(sale, "publish"), range(8)))
    assert {(answer.status_code, answer.json()["state"]) for answer in answers} == {(200, "open")}
    assert stock(redis_client, sale) == Stock.fresh(9)
    assert ledger(databases, sale) == {sale["items"][0]["sku"]: 9}


def test_what_cannot_be_published(staff: Staff, redis_client: redis.Redis) -> None:
    sale = staff.draft(ends_at=ahead(seconds=0.3))
    sku = sale["items"][0]["sku"]
    time.sleep(0.4)
    assert code(staff.act(sale, "publish")) == (409, "sale_state_conflict")
    staff.http.patch(f"/v1/sales/{sale['id']}", json={"ends_at": ahead(hours=1)})
    product = staff.http.get("/v1/products", params={"q": sku}).json()["items"][0]
    path = f"/v1/products/{product['id']}"
    staff.http.patch(path, json={"active": False}, headers={"If-Match": '"1"'})
    refused = staff.act(sale, "publish")
    assert code(refused) == (409, "sale_state_conflict")
    assert "not active" in refused.json()["detail"]
    staff.http.delete(path, headers={"If-Match": '"2"'})
    assert "does not exist" in staff.act(sale, "publish").json()["detail"]
    assert redis_client.keys("*sale*") == []
    assert staff.http.get(f"/v1/sales/{sale['id']}").json()["state"] == "draft"


def test_a_sale_is_made_once_per_key(staff: Staff) -> None:
    staff.product(sku="SKU-1")
    headers = {"Idempotency-Key": '"make-1"'}
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: staff.http.post("/v1/sales", json=GOOD, headers=headers), range(6)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    replayed = [answer for answer in answers if answer.headers.get("idempotency-replayed") == "true"]
    assert len(replayed) == 5
    assert code(staff.http.post("/v1/sales", json={**GOOD, "name": "Other"}, headers=headers)) == (
        422,
        "idempotency_key_reused",
    )
    assert len(staff.http.get("/v1/sales").json()["items"]) == 1
    for key in ("a" * 65, "a b", '"open', '"a\\x"'):
        answer = staff.http.post("/v1/sales", json=GOOD, headers={"Idempotency-Key": key})
        assert code(answer) == (400, "malformed_request"), key


def restock(staff: Staff, sale: dict[str, Any], key: str | None, **members: Any) -> httpx.Response:
    body = {"sku": sale["items"][0]["sku"], "quantity": 5, **members}
    headers = {} if key is None else {"Idempotency-Key": key}
    return staff.http.post(f"/v1/sales/{sale['id']}/restock", json=body, headers=headers)


def test_restock_once_per_key(staff: Staff, redis_client: redis.Redis, databases: Databases) -> None:
    sale = staff.open_sale(stock=10)
    sku = sale["items"][0]["sku"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: restock(staff, sale, "more-1"), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert (stock(redis_client, sale).available, ledger(databases, sale)) == (15, {sku: 15})
    assert sorted(answer.headers.get("idempotency-replayed", "") for answer in answers) == [""] + ["true"] * 7
    assert restock(staff, sale, "more-2", quantity=1).status_code == 200
    assert (stock(redis_client, sale).allotted, ledger(databases, sale)) == (16, {sku: 16})
    assert code(restock(staff, sale, "more-1", quantity=6)) == (422, "idempotency_key_reused")
    assert code(restock(staff, sale, None)) == (400, "idempotency_key_missing")
    assert code(restock(staff, sale, "k", sku="OTHER")) == (404, "sku_not_found")
    assert code(restock(staff, sale, "k", quantity=STOCK_MAX)) == (422, "validation_failed")
    for quantity in (0, -1, "5", 1.5, None, True, STOCK_MAX + 1):
        assert code(restock(staff, sale, "k", quantity=quantity)) == (422, "validation_failed"), quantity
    assert ledger(databases, sale) == {sku: 16}
    staff.act(sale, "end")
    assert restock(staff, sale, "more-1").status_code == 200  # a lost reply, asked again
    assert code(restock(staff, sale, "more-3")) == (409, "sale_state_conflict")
    assert code(restock(staff, staff.draft(), "k")) == (409, "sale_state_conflict")
    assert stock(redis_client, sale).available == 16


def test_a_restock_is_answered_as_then_when_redis_has_forgotten_the_sale(
    staff: Staff, redis_client: redis.Redis, databases: Databases
) -> None:
    sale = staff.open_sale(stock=10)
    assert restock(staff, sale, "more").status_code == 200
    staff.act(sale, "end")
    with psycopg.connect(databases.catalogue_dsn) as connection:
        connection.execute(
            "UPDATE sales SET starts_at = now() - interval '3 days', ends_at = now() - interval '25 hours'"
        )
    redis_client.flushall()
    again = restock(staff, sale, "more")
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true"), again.text
    assert again.json()["state"] == "ended"
    assert code(restock(staff, sale, "more", quantity=6)) == (422, "idempotency_key_reused")
    assert ledger(databases, sale) == {sale["items"][0]["sku"]: 15}
    assert not redis_client.exists(topology.lane_state_key(lane_of(sale)))


def test_report(staff: Staff, redis_client: redis.Redis) -> None:
    draft = staff.draft(stock=10, skus=2)
    skus = [item["sku"] for item in draft["items"]]
    path = f"/v1/sales/{draft['id']}/report"
    empty = {"restocked": 0, "reserved": 0, "paid": 0, "rejected": 0}
    assert staff.http.get(path).json() == {
        "sale_id": draft["id"],
        "state": "draft",
        "items": [{"sku": sku, "initial": 10, "available": 10, **empty} for sku in skus],
        "refused": {},
        "invariants": {"A": None, "B": None},
    }
    staff.act(draft, "publish")
    restock(staff, draft, "r", quantity=3)
    field = topology.stock_field(UUID(draft["id"]), 1)
    packed = Stock(available=4, reserved=3, paid=2, rejected=1, allotted=12, borrowed=0, lent=2).pack()
    redis_client.hset(topology.lane_state_key(lane_of(draft)), field, packed)
    redis_client.hset(topology.REFUSED_KEY_PREFIX + draft["id"], mapping={"sold_out": 12, "rate_limited": 3})
    verdict = {"sale_id": draft["id"], "at_ms": 1, "A": True, "B": None, "detail": []}
    redis_client.hset(topology.VERDICTS_KEY, draft["id"], json.dumps(verdict))
    assert staff.http.get(path).json() == {
        "sale_id": draft["id"],
        "state": "open",
        "items": [
            {"sku": skus[0], "initial": 10, "available": 13, **empty, "restocked": 3},
            {"sku": skus[1], "initial": 10, "restocked": 0, "available": 6, "reserved": 3, "paid": 2, "rejected": 1},
        ],
        "refused": {"rate_limited": 3, "sold_out": 12},
        "invariants": {"A": True, "B": None},
    }


def test_the_report_of_a_sale_that_redis_forgot_long_after_its_end(
    staff: Staff, redis_client: redis.Redis, databases: Databases
) -> None:
    sale = staff.open_sale()
    restock(staff, sale, "r", quantity=3)
    assert staff.act(sale, "end").json()["state"] == "ended"
    path = f"/v1/sales/{sale['id']}/report"
    sku = sale["items"][0]["sku"]
    for shard, sold in ((0, 2), (3, 1)):
        with psycopg.connect(databases.shard_dsns[shard]) as connection:
            connection.execute(
                "INSERT INTO quota (sale_id, sku, granted, seq, sold) VALUES (%s, %s, 4, 1, %s)",
                (sale["id"], sku, sold),
            )
    redis_client.hdel(topology.lane_state_key(lane_of(sale)), topology.stock_field(UUID(sale["id"]), 0))
    assert code(staff.http.get(path)) == (503, "dependency_unavailable"), "Redis lost it"
    with psycopg.connect(databases.catalogue_dsn) as connection:
        connection.execute(
            "UPDATE sales SET starts_at = now() - interval '3 days', ends_at = now() - interval '25 hours'"
        )
    redis_client.flushall()
    answer = staff.http.get(path).json()
    initial = sale["items"][0]["stock"]
    assert answer["state"] == "ended" and answer["refused"] == {} and answer["invariants"] == {"A": None, "B": None}
    assert answer["items"] == [
        {
            "sku": sku, "initial": initial, "restocked": 3, "available": initial, "reserved": 0, "paid": 3, "rejected": 0,
        }
    ]  # fmt: skip
    # Nothing brings it back to Redis.
    for verb in ("end", "publish"):
        assert staff.act(sale, verb).json()["state"] == "ended"
    assert not redis_client.exists(topology.sale_key(UUID(sale["id"])), topology.SALES_KEY)


@pytest.mark.parametrize("begun", [True, False])
def test_a_sale_that_is_ended_early_ends_then(staff: Staff, redis_client: redis.Redis, begun: bool) -> None:
    """What is kept for a time after the end is kept from there."""
    sale = staff.open_sale() if begun else staff.open_sale(starts_at=ahead(hours=2), ends_at=ahead(days=400))
    before = datetime.now(UTC) - timedelta(seconds=5)
    ended = staff.act(sale, "end").json()
    assert ended["state"] == "ended" and before < datetime.fromisoformat(ended["ends_at"]) <= datetime.now(UTC)
    assert staff.act(sale, "end").json() == ended
    assert document(redis_client, sale).ends_at_ms == int(datetime.fromisoformat(ended["ends_at"]).timestamp() * 1000)


def test_a_lane_that_lost_the_sale_is_never_loaded_again(staff: Staff, redis_client: redis.Redis) -> None:
    sale = staff.open_sale()
    redis_client.flushall()
    for answer in (
        staff.act(sale, "publish"),
        staff.act(sale, "pause"),
        restock(staff, sale, "k"),
        staff.http.get(f"/v1/sales/{sale['id']}/report"),
    ):
        assert code(answer) == (503, "dependency_unavailable")
        assert "retry-after" in answer.headers
    assert not redis_client.exists(topology.lane_state_key(lane_of(sale)))
    # Edges learn of it, so that they do not say that there is no such sale.
    assert document(redis_client, sale).sale_id == UUID(sale["id"])


def test_the_synchroniser_puts_back_a_lost_document(staff: Staff, redis_client: redis.Redis) -> None:
    sale = staff.open_sale()
    before = document(redis_client, sale)
    redis_client.delete(topology.sale_key(UUID(sale["id"])), topology.SALES_KEY)
    deadline = time.monotonic() + 15
    while not redis_client.sismember(topology.SALES_KEY, sale["id"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert document(redis_client, sale) == before


def test_list(staff: Staff) -> None:
    made = [staff.draft()["id"] for _ in range(5)]
    first = staff.http.get("/v1/sales", params={"limit": 3}).json()
    second = staff.http.get("/v1/sales", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert [sale["id"] for sale in first["items"] + second["items"]] == made[::-1]
    assert second["next_cursor"] is None


def _item(**members: Any) -> dict[str, Any]:
    return {"items": [{**GOOD["items"][0], **members}]}


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"name": ""}, "/name"),
        ({"name": 1}, "/name"),
        ({"starts_at": "yesterday"}, "/starts_at"),
        ({"starts_at": "2026-01-01T00:00:00"}, "/starts_at"),
        ({"starts_at": "1969-01-01T00:00:00Z"}, "/starts_at"),
        ({"starts_at": "0001-01-01T00:00:00+14:00"}, "/starts_at"),
        ({"starts_at": 1700000000}, "/starts_at"),
        ({"starts_at": "1700000000"}, "/starts_at"),
        ({"starts_at": "2026"}, "/starts_at"),
        ({"starts_at": "2026-01-01"}, "/starts_at"),
        ({"starts_at": None}, "/starts_at"),
        ({"ends_at": "4102444800000"}, "/ends_at"),
        ({"starts_at": "2099-01-01T00:00:00Z"}, "/ends_at"),
        ({"ends_at": "2021-01-01T00:00:00Z"}, "/ends_at"),
        ({"ends_at": "2019-01-01T00:00:00Z"}, "/ends_at"),
        ({"ends_at": "10000-01-01T00:00:00Z"}, "/ends_at"),
        ({"hold_seconds": 0}, "/hold_seconds"),
        ({"hold_seconds": 86_401}, "/hold_seconds"),
        ({"hold_seconds": 1.5}, "/hold_seconds"),
        ({"lanes": 0}, "/lanes"),
        ({"lanes": 2}, "/lanes"),
        ({"items": []}, "/items"),
        ({"items": [GOOD["items"][0]] * 2}, ""),
        ({"items": [{**GOOD["items"][0], "sku": f"S{n}"} for n in range(201)]}, "/items"),
        (_item(sku="not a sku"), "/items/0/sku"),
        (_item(sku="UNKNOWN"), "/items/0/sku"),
        (_item(sku="INACTIVE"), "/items/0/sku"),
        (_item(stock=-1), "/items/0/stock"),
        (_item(stock=STOCK_MAX + 1), "/items/0/stock"),
        (_item(stock="5"), "/items/0/stock"),
        (_item(price_minor=-1), "/items/0/price_minor"),
        (_item(price_minor=10**12 + 1), "/items/0/price_minor"),
        (_item(per_user_limit=-1), "/items/0/per_user_limit"),
        (_item(per_user_limit=65_536), "/items/0/per_user_limit"),
        (_item(colour="blue"), "/items/0/colour"),
        ({"state": "open"}, "/state"),
        ({"id": str(uuid4())}, "/id"),
    ],
)
def test_sales_that_are_not_valid(staff: Staff, members: dict[str, Any], pointer: str) -> None:
    staff.product(sku="SKU-1")
    staff.product(sku="INACTIVE", active=False)
    answer = staff.http.post("/v1/sales", json={**GOOD, **members})
    assert code(answer) == (422, "validation_failed")
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert staff.http.get("/v1/sales").json()["items"] == []


def test_one_currency(staff: Staff) -> None:
    skus = [staff.product(currency=currency)["sku"] for currency in ("EUR", "USD")]
    items = [{"sku": sku, "stock": 1, "price_minor": 1, "per_user_limit": 0} for sku in skus]
    answer = staff.http.post("/v1/sales", json={**GOOD, "items": items})
    assert code(answer) == (422, "validation_failed")
    assert answer.json()["errors"] == [
        {"pointer": "/items/1/sku", "detail": "the currency of product SKU-2 is USD, not EUR"}
    ]


def test_the_most_that_fits(staff: Staff, redis_client: redis.Redis) -> None:
    skus = [f"SKU-{n}" for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda sku: staff.product(sku=sku), skus))
    items = [{"sku": sku, "stock": STOCK_MAX, "price_minor": 10**12, "per_user_limit": 65_535} for sku in skus]
    members = {**GOOD, "items": items, "hold_seconds": 86_400, "ends_at": "9999-12-31T23:59:59Z"}
    sale = staff.http.post("/v1/sales", json=members).json()
    assert staff.act(sale, "publish").status_code == 200
    assert stock(redis_client, sale, 199) == Stock.fresh(STOCK_MAX)
    assert len(staff.http.get(f"/v1/sales/{sale['id']}/report").json()["items"]) == 200


@pytest.mark.parametrize("sale_id", ["x", str(uuid4()), "01890000-0000-8000-8000-000000000001", "%00"])
def test_sales_that_do_not_exist(staff: Staff, sale_id: str) -> None:
    path = f"/v1/sales/{sale_id}"
    headers = {"Idempotency-Key": "k"}
    for answer in (
        staff.http.get(path),
        staff.http.get(path + "/report"),
        staff.http.patch(path, json={"name": "x"}),
        *(staff.http.post(f"{path}/{verb}") for verb in ("publish", "pause", "resume", "end")),
        staff.http.post(path + "/restock", json={"sku": "S", "quantity": 1}, headers=headers),
    ):
        assert code(answer) == (404, "sale_not_found")


def test_orders_meet_what_was_published(staff: Staff, redis_client: redis.Redis) -> None:
    """The lane takes the packed definition as scripts read it: a newer version through `define-1` by hand."""
    sale = staff.open_sale()
    packed = lane_definition(redis_client, sale)
    script = scripts.DEFINE
    answer = redis_client.eval(
        script.source,
        1,
        topology.lane_state_key(lane_of(sale)),
        topology.definition_field(UUID(sale["id"]))[2:],
        packed,
    )
    assert answer == 0  # the same version


def test_postgresql_breaks_off_in_the_middle(staff: Staff, redis_client: redis.Redis, databases: Databases) -> None:
    sale = staff.draft(stock=4)
    waiting = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with (
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(databases.catalogue_dsn) as holder,
        psycopg.connect(databases.catalogue_dsn, autocommit=True) as killer,
    ):
        holder.execute("SELECT 1 FROM sales FOR UPDATE")
        publishing = pool.submit(staff.act, sale, "publish")
        deadline = time.monotonic() + 15
        while not (rows := killer.execute(waiting).fetchall()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        killer.execute("SELECT pg_terminate_backend(%s)", rows[0])
        assert code(publishing.result()) == (503, "dependency_unavailable")
        # Every other connection of the pool dies, too: they are replaced, not handed out.
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> ALL(%s) AND datname = current_database()"
        killer.execute(others, ([killer.info.backend_pid, holder.info.backend_pid],))
    assert redis_client.keys("*sale*") == []
    assert staff.act(sale, "publish").json()["state"] == "open"
    assert stock(redis_client, sale) == Stock.fresh(4)
