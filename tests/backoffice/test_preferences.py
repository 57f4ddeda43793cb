"""Preferences, push subscriptions and previews over HTTP."""

from __future__ import annotations

import base64
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
import redis

from backoffice.notices.store import SUBSCRIPTIONS_MAX
from devstack.servers import RedisServer
from domain.notices import ORDER_KINDS, NoticeKind
from domain.topology import Topology
from runtime.tokens.vapid import VapidKey, new_vapid_key
from tests.backoffice.test_users import code
from tests.fixtures.fix_backoffice import BackofficeProcess, Staff
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_people import People, Person
from tests.fixtures.fix_push import VAPID_PUBLIC_KEY

PREFERENCES = "/v1/users/me/preferences"
SUBSCRIPTIONS = "/v1/users/me/push-subscriptions"
ALL = {kind.value: True for kind in ORDER_KINDS}


def new_subscription(endpoint: str | None = None, **changes: Any) -> dict[str, Any]:
    """A subscription as a browser makes it."""
    return {
        "endpoint": endpoint or f"https://push.example/{uuid4()}",
        "expirationTime": None,
        "keys": {
            "p256dh": VapidKey.parse(new_vapid_key()).public,
            "auth": base64.urlsafe_b64encode(secrets.token_bytes(16)).rstrip(b"=").decode(),
        },
        **changes,
    }


def entries(databases: Databases, person: Person) -> list[tuple[str, Any, Any]]:
    dsn = databases.shard_dsns[Topology().shard_of_user(person.id)]
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT actor, before, after FROM audit.entries WHERE object = %s ORDER BY id", (f"user:{person.id}",)
        ).fetchall()
    return [(row[0], row[1], row[2]) for row in rows]


def test_preferences_begin_with_all_notices_and_the_default_language(people: People) -> None:
    answer = people.make().http.get(PREFERENCES)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "private, no-cache"
    assert answer.json() == {"language": "en", "languages": ["de", "en"], "email": ALL, "push": ALL}


def test_a_change_names_only_what_it_changes(people: People, databases: Databases) -> None:
    ada, other = people.make(), people.make()
    german = ada.http.patch(PREFERENCES, json={"language": "de"})
    assert (german.status_code, german.json()["language"]) == (200, "de")
    ada.http.patch(PREFERENCES, json={"email": {"order_expired": False, "order_paid": False}})
    last = ada.http.patch(PREFERENCES, json={"email": {"order_paid": True}, "push": {"order_cancelled": False}})
    expected = {
        "language": "de",
        "languages": ["de", "en"],
        "email": {**ALL, "order_expired": False},
        "push": {**ALL, "order_cancelled": False},
    }
    assert last.json() == ada.http.get(PREFERENCES).json() == expected
    assert other.http.get(PREFERENCES).json()["email"] == ALL
    for same in ({}, {"language": "de"}, {"push": {"order_cancelled": False}}, {"email": {}}):
        assert ada.http.patch(PREFERENCES, json=same).json() == expected
    found = entries(databases, ada)
    assert [actor for actor, _, _ in found] == [str(ada.id)] * 3  # none for a change without a difference
    assert found[0][1:] == ({"language": None}, {"language": "de"})
    assert found[2][1:] == (
        {"email_off": ["order_expired", "order_paid"], "push_off": []},
        {"email_off": ["order_expired"], "push_off": ["order_cancelled"]},
    )


@pytest.mark.parametrize(
    "body",
    [
        {"language": "xx"},
        {"language": "../en"},
        {"language": None},
        {"language": 1},
        {"email": {"password_changed": False}},
        {"email": {"order_paid": "no"}},
        {"email": {"order_paid": None}},
        {"email": [False]},
        {"sms": {}},
        {"languages": ["en"]},
    ],
)
def test_changes_that_are_refused(people: People, body: dict[str, Any]) -> None:
    """Letters about the security of an account cannot be switched off."""
    ada = people.make()
    assert code(ada.http.patch(PREFERENCES, json=body)) == (422, "validation_failed")
    assert ada.http.get(PREFERENCES).json()["email"] == ALL


def test_changes_in_parallel_are_all_made(people: People) -> None:
    ada = people.make()
    with ThreadPoolExecutor(4) as pool:
        changes = [{"email": {kind.value: False}} for kind in ORDER_KINDS]
        answers = list(pool.map(lambda body: ada.http.patch(PREFERENCES, json=body), changes))
    assert [answer.status_code for answer in answers] == [200] * len(ORDER_KINDS)
    assert ada.http.get(PREFERENCES).json()["email"] == dict.fromkeys(ALL, False)


def test_changes_are_limited(people: People, staff: Staff) -> None:
    assert staff
    ada = people.make()
    for number in range(100):
        answer = ada.http.patch(PREFERENCES, json={"language": ("de", "en")[number % 2]})
        assert answer.status_code == 200
    refused = ada.http.patch(PREFERENCES, json={"language": "de"})
    assert code(refused) == (429, "rate_limited") and int(refused.headers["retry-after"]) > 0


def test_callers_without_an_account_and_without_a_token(people: People, backoffice: BackofficeProcess) -> None:
    synthetic = people.client("buyer", uuid4())
    for method, path, body in (
        ("GET", PREFERENCES, None),
        ("PATCH", PREFERENCES, {"language": "de"}),
        ("GET", SUBSCRIPTIONS, None),
        ("POST", SUBSCRIPTIONS, new_subscription()),
        ("DELETE", SUBSCRIPTIONS, None),
    ):
        assert code(synthetic.request(method, path, json=body)) == (404, "user_not_found")
        assert code(httpx.request(method, backoffice.url + path, json=body)) == (401, "token_missing")


def test_everything_goes_with_the_account(people: People, databases: Databases) -> None:
    ada = people.make()
    ada.http.patch(PREFERENCES, json={"language": "de"})
    ada.http.post(SUBSCRIPTIONS, json=new_subscription())
    assert ada.http.delete("/v1/users/me").status_code == 204
    with psycopg.connect(databases.shard_dsns[Topology().shard_of_user(ada.id)]) as connection:
        for table in ("notice_preferences", "push_subscriptions"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_browsers_subscribe_and_unsubscribe(people: People, databases: Databases) -> None:
    ada, other = people.make(), people.make()
    first, second = new_subscription(), new_subscription()
    made = ada.http.post(SUBSCRIPTIONS, json=first)
    assert made.status_code == 201
    view = made.json()
    assert view == {"id": view["id"], "endpoint": first["endpoint"], "created_at": view["created_at"]}
    again = ada.http.post(SUBSCRIPTIONS, json={**first, "keys": second["keys"]})
    assert (again.status_code, again.json()) == (200, view)
    ada.http.post(SUBSCRIPTIONS, json=second)
    assert other.http.post(SUBSCRIPTIONS, json=first).status_code == 201
    listed = ada.http.get(SUBSCRIPTIONS).json()["items"]
    assert [item["endpoint"] for item in listed] == [first["endpoint"], second["endpoint"]]
    with psycopg.connect(databases.shard_dsns[Topology().shard_of_user(ada.id)]) as connection:
        stored = connection.execute("SELECT p256dh FROM push_subscriptions WHERE id = %s", (view["id"],)).fetchone()
    padded = second["keys"]["p256dh"] + "="
    assert stored is not None and bytes(stored[0]) == base64.urlsafe_b64decode(padded)
    for _ in range(2):
        gone = ada.http.delete(SUBSCRIPTIONS, params={"endpoint": first["endpoint"]})
        assert (gone.status_code, gone.content) == (204, b"")
    assert [item["endpoint"] for item in ada.http.get(SUBSCRIPTIONS).json()["items"]] == [second["endpoint"]]
    assert ada.http.delete(SUBSCRIPTIONS).status_code == 204
    assert ada.http.get(SUBSCRIPTIONS).json() == {"items": []}
    assert len(other.http.get(SUBSCRIPTIONS).json()["items"]) == 1
    noted = [after for _, _, after in entries(databases, ada)]
    assert noted[0] == {"push_subscribed": [view["id"]]} and noted[2] == {"push_unsubscribed": [view["id"]]}
    assert "push.example" not in str(noted)  # the log outlives the account


def test_the_oldest_subscription_goes_when_there_are_too_many(people: People) -> None:
    ada = people.make()
    made = [new_subscription() for _ in range(SUBSCRIPTIONS_MAX + 3)]
    for subscription in made:
        assert ada.http.post(SUBSCRIPTIONS, json=subscription).status_code == 201
    kept = [item["endpoint"] for item in ada.http.get(SUBSCRIPTIONS).json()["items"]]
    assert kept == [subscription["endpoint"] for subscription in made[3:]]


GOOD = new_subscription()


@pytest.mark.parametrize(
    "body",
    [
        {**GOOD, "endpoint": "http://push.example/1"},
        {**GOOD, "endpoint": "https://"},
        {**GOOD, "endpoint": "https://user:word@push.example/1"},
        {**GOOD, "endpoint": "https://push.example:8443/1"},
        {**GOOD, "endpoint": "https://push.example:x/1"},
        {**GOOD, "endpoint": "https://[::1/1"},
        {**GOOD, "endpoint": "https://127.0.0.1/1"},
        {**GOOD, "endpoint": "https://[::1]/1"},
        {**GOOD, "endpoint": "https://push.example/1#x"},
        {**GOOD, "endpoint": "https://push.example/\u00e9"},
        {**GOOD, "endpoint": "https://push.example/ x"},
        {**GOOD, "endpoint": "https://push.example/" + "x" * 1000},
        {**GOOD, "endpoint": None},
        {**GOOD, "keys": {**GOOD["keys"], "p256dh": "A" * 87}},
        {**GOOD, "keys": {**GOOD["keys"], "p256dh": GOOD["keys"]["p256dh"][:-1]}},
        {**GOOD, "keys": {**GOOD["keys"], "auth": "AAAA"}},
        {**GOOD, "keys": {**GOOD["keys"], "auth": "!" * 22}},
        {**GOOD, "keys": {"auth": GOOD["keys"]["auth"]}},
        {**GOOD, "more": 1},
        {},
    ],
)
def test_subscriptions_that_are_refused(people: People, body: dict[str, Any]) -> None:
    ada = people.make()
    assert code(ada.http.post(SUBSCRIPTIONS, json=body)) == (422, "validation_failed")
    assert ada.http.get(SUBSCRIPTIONS).json() == {"items": []}


def test_the_public_key_is_public(backoffice: BackofficeProcess) -> None:
    answer = httpx.get(f"{backoffice.url}/v1/push-key")
    assert (answer.status_code, answer.json()) == (200, {"public_key": VAPID_PUBLIC_KEY})


def test_without_a_key_there_is_no_web_push(
    tmp_path: Path, redis_server: RedisServer, redis_client: redis.Redis, databases: Databases
) -> None:
    assert redis_client
    process = BackofficeProcess(
        tmp_path,
        redis_server.url,
        databases,
        environ={"FLASHSALE_DEFAULT_LANGUAGE": "de"},
        without=("FLASHSALE_VAPID_PUBLIC_KEY",),
    )
    process.start()
    people = People(process, databases)
    try:
        ada = people.make()
        assert code(httpx.get(f"{process.url}/v1/push-key")) == (404, "not_found")
        refused = ada.http.post(SUBSCRIPTIONS, json=new_subscription())
        assert code(refused) == (404, "not_found") and "no web pushes" in refused.json()["detail"]
        assert ada.http.get(PREFERENCES).json()["language"] == "de"
        assert ada.http.patch(PREFERENCES, json={"language": "en"}).json()["language"] == "en"
    finally:
        people.close()
        process.kill()


def test_staff_preview_every_notice(staff: Staff, people: People) -> None:
    listed = staff.http.get("/v1/notice-samples").json()
    assert listed["kinds"] == [kind.value for kind in NoticeKind]
    assert {"code": "de", "name": "Deutsch"} in listed["languages"]
    for kind in listed["kinds"]:
        for language in listed["languages"]:
            shown = staff.http.get(f"/v1/notice-samples/{kind}/{language['code']}").json()
            assert shown["subject"] and shown["subject"] in shown["html"] and shown["text"]
            assert (shown["push"] is not None) == (kind in ALL)
    paid = staff.http.get("/v1/notice-samples/order_paid/de").json()
    assert paid["subject"] == "Ihre Bestellung ist bezahlt" and "1.259,98 EUR" in paid["text"]
    for path in ("order_paid/xx", "other/de", "order_paid/..%2Fen"):
        assert code(staff.http.get(f"/v1/notice-samples/{path}")) == (404, "not_found")
    buyer = people.make().http
    for path in ("/v1/notice-samples", "/v1/notice-samples/order_paid/de"):
        assert code(buyer.get(path)) == (403, "forbidden")
