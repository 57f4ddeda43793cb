"""Webhooks over HTTP: created once with a secret, listed without, enabled, rotated, pinged, replayed, deleted."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from domain import ids
from domain.webhooks import OVERLAP, WEBHOOKS_MAX, encode_secret, secret_of
from tests.backoffice.test_audit import done, refused
from tests.fixtures.fix_backoffice import BackofficeProcess, Staff
from tests.fixtures.fix_receiver import WEBHOOK_KEY

URL = "https://shop.example/hooks"
MISSING = UUID(int=5)


def create(staff: Staff, key: str | None = None, **members: Any) -> Any:
    body = {"url": URL, "event_types": ["order.*"], **members}
    return staff.http.post("/v1/webhooks", json=body, headers={} if key is None else {"Idempotency-Key": key})


def webhook(staff: Staff, **members: Any) -> dict[str, Any]:
    answer = create(staff, **members)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/v1/webhooks/{made['id']}"
    return made


@pytest.fixture
def catalogue(backoffice: BackofficeProcess) -> Iterator[psycopg.Connection]:
    with psycopg.connect(backoffice.databases.catalogue_dsn, autocommit=True) as connection:
        yield connection


def log_of(catalogue: psycopg.Connection, webhook_id: str, *states: str) -> list[str]:
    """Delivery ids, oldest first."""
    found = [str(ids.new_uuid7()) for _ in states]
    found.sort()
    for delivery, state in zip(found, states, strict=True):
        catalogue.execute(
            "INSERT INTO webhook_deliveries (id, webhook_id, event_id, event_type, body, state, attempts, next_at, history)"
            " VALUES (%s, %s, %s, 'order.paid', '{}', %s, 3, %s, %s)",
            (
                delivery, webhook_id, f"event-{delivery}", state, "2099-01-01" if state == "waiting" else None,
                json.dumps([{"at": "2026-01-01T00:00:00.000Z", "status": 500, "answer": "no"}]),
            ),
        )  # fmt: skip
    return found


def test_the_secret_is_shown_once(staff: Staff, backoffice: BackofficeProcess, catalogue: psycopg.Connection) -> None:
    made = webhook(staff, description="orders to the warehouse", event_types=["order.*", "sale.ended"])
    secret = base64.b64decode(made.pop("secret").removeprefix("whsec_"), validate=True)
    (salt,) = catalogue.execute("SELECT salt FROM webhooks WHERE id = %s", [made["id"]]).fetchone() or ()
    assert secret == secret_of(WEBHOOK_KEY.encode(), UUID(made["id"]), salt)
    assert (made["enabled"], made["disabled_reason"], made["waiting"], made["skipped"]) == (True, None, 0, 0)
    assert staff.http.get(f"/v1/webhooks/{made['id']}").json() == made
    assert staff.http.get("/v1/webhooks").json() == {"items": [made], "next_cursor": None}
    entry = done(staff, "webhook.create", f"webhook:{made['id']}")
    assert entry["after"] == {
        "url": URL, "event_types": ["order.*", "sale.ended"], "description": "orders to the warehouse",
    }  # fmt: skip
    rows = catalogue.execute("SELECT row_to_json(webhooks)::text FROM webhooks").fetchall()
    shown = base64.b64encode(secret).decode()
    assert shown not in backoffice.log + str(rows) + staff.http.get("/v1/audit").text


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"url": "http://shop.example/"}, "/url"), ({"url": "ftp://shop.example/"}, "/url"), ({"url": "https://"}, "/url"),
        ({"url": "https://ann:pw@shop.example/"}, "/url"), ({"url": "https://ann@shop.example/"}, "/url"),
        ({"url": "https://shop.example/#a"}, "/url"), ({"url": "https://shop.example:22/"}, "/url"),
        ({"url": "https://shop.example:0/"}, "/url"), ({"url": "https://192.0.0.192/"}, "/url"),
        ({"url": "https://shop.example:99999/"}, "/url"), ({"url": "https://127.0.0.1/"}, "/url"),
        ({"url": "https://169.254.169.254/latest"}, "/url"), ({"url": "https://[::1]/"}, "/url"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "/url"), ({"url": "https://shop.example/a b"}, "/url"),
        ({"url": "https://shop.example/" + "a" * 2000}, "/url"), ({"event_types": []}, "/event_types"),
        ({"event_types": ["*"]}, "/event_types/0"), ({"event_types": ["order"]}, "/event_types/0"),
        ({"event_types": ["letter.*"]}, "/event_types/0"), ({"event_types": ["order.*", "order.*"]}, "/event_types"),
        ({"description": "a" * 501}, "/description"), ({"secret": "mine"}, "/secret"),
    ],
)  # fmt: skip
def test_input_that_is_refused(staff: Staff, members: dict[str, Any], pointer: str) -> None:
    answer = create(staff, **members)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert staff.http.get("/v1/webhooks").json()["items"] == []


def test_a_key_creates_once(staff: Staff) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: create(staff, "k-1"), range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1  # the secret, too
    assert sum(answer.headers.get("idempotency-replayed") == "true" for answer in answers) == 7
    other = create(staff, "k-1", description="other")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(staff.http.get("/v1/webhooks").json()["items"]) == 1


def test_the_number_is_bounded_and_pages_follow(staff: Staff) -> None:
    made = [webhook(staff)["id"] for _ in range(WEBHOOKS_MAX)]
    answer = create(staff)
    assert answer.status_code == 422
    assert "delete one first" in answer.json()["errors"][0]["detail"]
    found, cursor = [], None
    while True:
        page = staff.http.get("/v1/webhooks", params={"limit": 20, **({"cursor": cursor} if cursor else {})}).json()
        found += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == sorted(made, reverse=True)
    assert staff.http.delete(f"/v1/webhooks/{made[0]}").status_code == 204
    assert create(staff).status_code == 201


def test_disable_and_enable(staff: Staff, catalogue: psycopg.Connection) -> None:
    made = webhook(staff)
    path, about = f"/v1/webhooks/{made['id']}", f"webhook:{made['id']}"
    for _ in range(2):  # the repeat changes nothing
        disabled = staff.http.post(f"{path}/disable").json()
        assert (disabled["enabled"], disabled["disabled_reason"]) == (False, "staff")
    entry = done(staff, "webhook.disable", about)
    assert entry["after"] == {"enabled": False, "disabled_reason": "staff"}
    catalogue.execute("UPDATE webhooks SET failures = 9, failing_since = now(), paused_until = now()")
    catalogue.execute("UPDATE webhooks SET enabled_at = now() - interval '1 hour'")
    for _ in range(2):
        enabled = staff.http.post(f"{path}/enable").json()
        assert (enabled["enabled"], enabled["failures"], enabled["paused_until"]) == (True, 0, None)
    done(staff, "webhook.enable", about)
    since = catalogue.execute("SELECT enabled_at > now() - interval '1 minute' FROM webhooks").fetchone()
    assert since == (True,)


def test_a_secret_is_replaced(staff: Staff, catalogue: psycopg.Connection) -> None:
    made = webhook(staff)
    answer = staff.http.post(f"/v1/webhooks/{made['id']}/secret").json()
    assert answer["secret"] != made["secret"]
    (salt, previous, rest) = catalogue.execute(
        "SELECT salt, previous_salt, previous_until - now() FROM webhooks"
    ).fetchone() or (b"", b"", OVERLAP)
    secrets = [encode_secret(secret_of(WEBHOOK_KEY.encode(), UUID(made["id"]), each)) for each in (salt, previous)]
    assert secrets == [answer["secret"], made["secret"]]
    assert rest <= OVERLAP
    shown = staff.http.get(f"/v1/webhooks/{made['id']}").json()
    assert shown["previous_secret_until"] == answer["previous_secret_until"]
    entry = done(staff, "webhook.rotate_secret", f"webhook:{made['id']}")
    assert set(entry["after"]) == {"previous_secret_until"}


def test_a_ping_is_a_delivery(staff: Staff) -> None:
    made = webhook(staff)
    answer = staff.http.post(f"/v1/webhooks/{made['id']}/ping")
    assert answer.status_code == 202
    delivery = answer.json()
    assert (delivery["event_type"], delivery["state"], delivery["attempts"]) == ("webhook.ping", "waiting", 0)
    assert json.loads(delivery["body"])["data"] == {"webhook_id": made["id"]}
    assert staff.http.get(f"/v1/webhooks/{made['id']}/deliveries").json()["items"] == [delivery]
    assert staff.http.get(f"/v1/webhooks/{made['id']}").json()["waiting"] == 1
    done(staff, "webhook.ping", f"webhook:{made['id']}")


def test_the_log_and_a_replay(staff: Staff, catalogue: psycopg.Connection) -> None:
    made, other = webhook(staff), webhook(staff)
    path = f"/v1/webhooks/{made['id']}/deliveries"
    found = log_of(catalogue, made["id"], "delivered", "failed", "waiting")
    log_of(catalogue, other["id"], "failed")
    page = staff.http.get(path, params={"limit": 2}).json()
    rest = staff.http.get(path, params={"limit": 2, "cursor": page["next_cursor"]}).json()
    assert [item["id"] for item in page["items"] + rest["items"]] == found[::-1]
    assert rest["next_cursor"] is None
    assert page["items"][0]["history"] == [{"at": "2026-01-01T00:00:00.000Z", "status": 500, "answer": "no"}]
    failed = staff.http.get(path, params={"state": "failed"}).json()["items"]
    assert [item["id"] for item in failed] == [found[1]]
    assert staff.http.get(path, params={"state": "lost"}).status_code == 422
    for delivery, attempts in zip(found, (0, 0, 3), strict=True):
        answer = staff.http.post(f"{path}/{delivery}/replay")
        assert answer.status_code == 200
        assert (answer.json()["state"], answer.json()["attempts"]) == ("waiting", attempts)
        assert answer.json()["next_attempt_at"] < "2099"
    entry = staff.http.get("/v1/audit", params={"action": "webhook.replay", "object": made["id"]}).json()["items"][0]
    assert entry["after"] == {"delivery": found[2]}
    moved = staff.http.post(f"/v1/webhooks/{other['id']}/deliveries/{found[0]}/replay")
    assert (moved.status_code, moved.json()["code"]) == (404, "not_found")


def test_a_deleted_webhook_takes_its_log_along(staff: Staff, catalogue: psycopg.Connection) -> None:
    made = webhook(staff)
    log_of(catalogue, made["id"], "waiting", "failed")
    assert staff.http.delete(f"/v1/webhooks/{made['id']}").status_code == 204
    assert catalogue.execute("SELECT count(*) FROM webhook_deliveries").fetchone() == (0,)
    done(staff, "webhook.delete", f"webhook:{made['id']}")
    assert staff.http.delete(f"/v1/webhooks/{made['id']}").status_code == 404


def test_a_webhook_that_does_not_exist(staff: Staff) -> None:
    for webhook_id in (MISSING, "nothing", "%00"):
        for method, path in (
            ("GET", ""), ("DELETE", ""), ("GET", "/deliveries"), ("POST", "/enable"), ("POST", "/disable"),
            ("POST", "/secret"), ("POST", "/ping"), ("POST", f"/deliveries/{uuid4()}/replay"),
        ):  # fmt: skip
            answer = staff.http.request(method, f"/v1/webhooks/{webhook_id}{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
    assert refused(staff, action="webhook.enable", object=str(MISSING))[0]["outcome"] == "not_found"


def test_without_a_key_there_are_no_webhooks(tmp_path: Path, backoffice: BackofficeProcess, staff: Staff) -> None:
    made = webhook(staff)
    process = BackofficeProcess(
        tmp_path, backoffice.redis_url, backoffice.databases, without=("FLASHSALE_WEBHOOK_KEY",)
    )
    for name in ("token_keys_file", "staff_key_file"):
        getattr(process, name).write_bytes(getattr(backoffice, name).read_bytes())
        getattr(process, name).chmod(0o600)
    process.start()
    try:
        keyless = Staff(process.url, staff.token)
        answer = create(keyless)
        assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")
        assert "FLASHSALE_WEBHOOK_KEY" in answer.json()["detail"]
        assert keyless.http.post(f"/v1/webhooks/{made['id']}/secret").status_code == 503
        assert keyless.http.get("/v1/webhooks").status_code == 200
    finally:
        process.kill()
