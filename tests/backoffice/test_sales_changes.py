"""Changes of drafts and of published sales over HTTP: allowed members, windows, races."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
import redis

from tests.backoffice.sale_probes import ahead, code, document, lane_definition
from tests.fixtures.fix_backoffice import Staff
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_stack import eventually


def test_every_member_of_a_draft_can_change(staff: Staff) -> None:
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


def test_only_name_and_window_of_a_published_sale_can_change(staff: Staff, redis_client: redis.Redis) -> None:
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
def test_of_two_changes_that_together_make_an_invalid_window_one_is_refused(
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


def test_window_errors_point_to_the_members_of_the_request(staff: Staff) -> None:
    sale = staff.open_sale(starts_at="2090-01-01T11:00:00Z", ends_at="2090-01-01T13:00:00Z")
    draft = staff.draft(ends_at="2090-01-01T13:00:00Z")
    late = {"starts_at": "2091-01-01T00:00:00Z"}
    for change in (sale, draft):
        for body in (late, {"ends_at": "2019-01-01T00:00:00Z"}, {"starts_at": "1969-01-01T00:00:00Z"}):
            answer = staff.http.patch(f"/v1/sales/{change['id']}", json=body)
            assert code(answer) == (422, "validation_failed")
            assert {error["pointer"] for error in answer.json()["errors"]} == {f"/{name}" for name in body}
    # The state of an ended sale is checked before the window.
    staff.act(sale, "end")
    assert code(staff.http.patch(f"/v1/sales/{sale['id']}", json=late)) == (409, "sale_state_conflict")


@pytest.mark.parametrize(("verb", "member", "reached"), [("pause", "state", "paused"), ("end", "state", "ended")])
def test_a_stop_wins_over_parallel_edits(staff: Staff, verb: str, member: str, reached: str) -> None:
    """Sixteen clients rename the sale without a pause; the request that stops it does not lose to them."""
    sale = staff.open_sale()
    path = f"/v1/sales/{sale['id']}"
    stopped = threading.Event()
    statuses: list[int] = []

    def rename(number: int) -> None:
        for turn in itertools.count():
            if stopped.is_set():
                return
            statuses.append(staff.http.patch(path, json={"name": f"Name {number}.{turn}"}).status_code)

    with ThreadPoolExecutor(16) as pool:
        for number in range(16):
            pool.submit(rename, number)
        try:
            eventually(lambda: len(statuses) > 32)
            answer = staff.act(sale, verb)
        finally:
            stopped.set()
    assert (answer.status_code, answer.json()[member]) == (200, reached), answer.text
    assert set(statuses) <= ({200} if verb == "pause" else {200, 409})
    assert staff.http.get(path).json()[member] == reached
