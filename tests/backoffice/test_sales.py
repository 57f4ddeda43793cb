"""Sales over HTTP: life cycle, states by the clock, publishing, lists, servers that fail."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest
import redis

from domain import topology
from domain.sales import LaneSaleState, Stock
from reservation import scripts
from tests.backoffice.sale_probes import GOOD, ahead, code, document, lane_definition, lane_of, ledger, stock
from tests.fixtures.fix_backoffice import Staff
from tests.fixtures.fix_databases import Databases


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


def test_only_drafts_are_deleted(staff: Staff, databases: Databases) -> None:
    draft, published = staff.draft(skus=2), staff.open_sale()
    path = f"/v1/sales/{draft['id']}"
    assert code(staff.http.delete(f"/v1/sales/{published['id']}")) == (409, "sale_state_conflict")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: staff.http.delete(path), range(4)))
    assert sorted(answer.status_code for answer in answers) == [204, 404, 404, 404]
    assert code(staff.http.get(path)) == (404, "sale_not_found")
    assert [sale["id"] for sale in staff.http.get("/v1/sales").json()["items"]] == [published["id"]]
    with psycopg.connect(databases.catalogue_dsn) as connection:
        left = connection.execute("SELECT count(*) FROM sale_items WHERE sale_id = %s", (draft["id"],)).fetchone()
    assert left == (0,)
    entries = staff.http.get("/v1/audit", params={"object": f"sale:{draft['id']}"}).json()["items"]
    assert [entry["action"] for entry in entries if entry["outcome"] == "done"] == ["sale.delete", "sale.create"]


def test_publishing_and_deleting_a_draft_race_with_one_winner(staff: Staff) -> None:
    for _ in range(5):
        draft = staff.draft()
        with ThreadPoolExecutor(2) as pool:
            published = pool.submit(staff.act, draft, "publish")
            deleted = pool.submit(staff.http.delete, f"/v1/sales/{draft['id']}")
        outcome = (published.result().status_code, deleted.result().status_code)
        assert outcome in {(200, 409), (404, 204), (409, 204)}


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
    assert code(later) == (409, "sale_state_conflict")  # an ended sale stays ended
    assert staff.act(sale, "end").json()["state"] == "ended"


def test_concurrent_publishing_loads_once(staff: Staff, redis_client: redis.Redis, databases: Databases) -> None:
    sale = staff.draft(stock=9)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: staff.act(sale, "publish"), range(8)))
    assert {(answer.status_code, answer.json()["state"]) for answer in answers} == {(200, "open")}
    assert stock(redis_client, sale) == Stock.fresh(9)
    assert ledger(databases, sale) == {sale["items"][0]["sku"]: 9}


def test_drafts_that_cannot_be_published(staff: Staff, redis_client: redis.Redis) -> None:
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


def test_a_key_creates_one_sale(staff: Staff) -> None:
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


@pytest.mark.parametrize("begun", [True, False])
def test_ending_a_sale_early_moves_its_end(staff: Staff, redis_client: redis.Redis, begun: bool) -> None:
    """Retention times count from the new end."""
    sale = staff.open_sale() if begun else staff.open_sale(starts_at=ahead(hours=2), ends_at=ahead(days=400))
    before = datetime.now(UTC) - timedelta(seconds=5)
    ended = staff.act(sale, "end").json()
    assert ended["state"] == "ended" and before < datetime.fromisoformat(ended["ends_at"]) <= datetime.now(UTC)
    assert staff.act(sale, "end").json() == ended
    assert document(redis_client, sale).ends_at_ms == int(datetime.fromisoformat(ended["ends_at"]).timestamp() * 1000)


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


def test_scripts_read_the_published_definition(staff: Staff, redis_client: redis.Redis) -> None:
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


def test_postgresql_connections_break_while_publishing(
    staff: Staff, redis_client: redis.Redis, databases: Databases
) -> None:
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
