"""The audit log under hostile and unlucky conditions: floods, poison, servers that are away, look-alike values."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import time
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest

from backoffice.audit.export import EXPORTS_MAX, Export, ExportBroken, Exports
from backoffice.audit.refusals import MANY, Refusal, Refusals
from backoffice.audit.store import AuditLog, Entry, Filters
from backoffice.limits.attempts import PROFILE_ACCOUNT
from backoffice.web.messages import Refused
from runtime.audit import Act, Action, act_as, differences, operator_act, record
from runtime.audit.entries import members_json
from tests.backoffice.test_audit import add, done, entries, refused
from tests.backoffice.test_auth import age_use, login, refresh, register
from tests.backoffice.test_dead_letters import Queues
from tests.fixtures.fix_backoffice import BackofficeProcess, Staff
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_people import People
from tests.fixtures.fix_users import Accounts


async def nobody(_: str) -> UUID | None:
    return None


def refusal(client: str | None, object_: str = "unknown", email: str | None = None) -> Refusal:
    return Refusal(Action.USER_LOGIN, object_, "anonymous", client, "credentials_invalid", email)


async def found(accounts: Accounts, **filters: Any) -> list[Entry]:
    return await AuditLog(accounts.stores).page(Filters(**filters), before=None, limit=100)


async def test_a_flood_of_one_source_leaves_room_for_others(accounts: Accounts) -> None:
    refusals = Refusals(accounts.stores.catalogue, nobody, actor_keys_max=3)
    for number in range(50):
        refusals.note(refusal("10.0.0.1", f"sale:{number}"), request_id="r")
    refusals.note(refusal("10.0.0.2", "user:1"), request_id="r")
    refusals.note(refusal("10.0.0.1", "user:2")._replace(actor="clerk"), request_id="r")
    await refusals.step()
    written = {(entry.client, entry.object): entry.times for entry in await found(accounts)}
    assert written.pop(("10.0.0.1", MANY)) == 47
    others = {("10.0.0.2", "user:1"): 1, ("10.0.0.1", "user:2"): 1}
    assert written == {("10.0.0.1", f"sale:{number}"): 1 for number in range(3)} | others


async def test_the_room_of_a_source_is_free_again_after_the_window(accounts: Accounts) -> None:
    refusals = Refusals(accounts.stores.catalogue, nobody, actor_keys_max=1, window_s=0.0)
    for number in range(3):
        refusals.note(refusal("10.0.0.1", f"sale:{number}"), request_id="r")
        await refusals.step()
        await refusals.step()
    assert {entry.object for entry in await found(accounts)} == {"sale:0", "sale:1", "sale:2"}


async def test_a_shard_that_is_away_delays_only_refusals_of_its_addresses(accounts: Accounts) -> None:
    user_id = uuid4()
    is_away = True

    async def find(email: str) -> UUID | None:
        if email == "away@shop.example" and is_away:
            raise psycopg.OperationalError
        return user_id

    refusals = Refusals(accounts.stores.catalogue, find)
    refusals.note(refusal("10.0.0.1", email="away@shop.example"), request_id=None)
    refusals.note(refusal("10.0.0.1", email="there@shop.example"), request_id=None)
    refusals.note(refusal("10.0.0.1", "sale:1"), request_id=None)
    with pytest.raises(psycopg.OperationalError):
        await refusals.step()
    assert {entry.object for entry in await found(accounts)} == {f"user:{user_id}", "sale:1"}
    is_away = False
    assert await refusals.step() == 1
    assert [entry.object for entry in await found(accounts)].count(f"user:{user_id}") == 2


async def test_one_refusal_that_cannot_be_stored_does_not_take_others_with_it(accounts: Accounts) -> None:
    refusals = Refusals(accounts.stores.catalogue, nobody)
    for object_ in ("sale:1", "\0", "x" * 400, "sale:2"):
        refusals.note(refusal("10.0.0.1", object_), request_id=None)
    await refusals.step()
    assert {entry.object for entry in await found(accounts)} == {"sale:1", "sale:2"}


async def test_a_refusal_that_is_written_late_has_its_own_time(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists are in the order of ids, and look for times near the ids: an entry must not be missing in `since`."""
    is_away = True

    async def find(_: str) -> UUID | None:
        if is_away:
            raise psycopg.OperationalError
        return None

    refusals = Refusals(accounts.stores.catalogue, find)
    an_hour_ago = time.time_ns() - 3_600_000_000_000
    with monkeypatch.context() as past:
        past.setattr("domain.ids.time.time_ns", lambda: an_hour_ago)
        past.setattr("backoffice.audit.refusals.datetime", _Past)
        refusals.note(refusal("10.0.0.1", email="ada@shop.example"), request_id=None)
    with pytest.raises(psycopg.OperationalError):
        await refusals.step()
    is_away = False
    assert await refusals.step() == 1
    (entry,) = await found(accounts)
    assert abs(entry.at.timestamp() - an_hour_ago / 1e9) < 60
    assert await found(accounts, since=entry.at - timedelta(seconds=1)) == [entry]
    assert await found(accounts, since=entry.at + timedelta(minutes=10)) == []


class _Past:
    @staticmethod
    def now(zone: Any) -> datetime:
        return datetime.now(zone) - timedelta(hours=1)


def test_the_request_id_of_a_refusal_by_the_head_is_in_the_answer(staff: Staff, people: People) -> None:
    sale, buyer = staff.draft(), people.make("buyer")
    path = f"/v1/sales/{sale['id']}/pause"
    answer = buyer.http.post(path)
    (entry,) = refused(staff, actor=str(buyer.id))
    assert answer.status_code == 403 and answer.headers["x-request-id"] == entry["request_id"]
    answer = buyer.http.post(path, content=iter([b"x"] * 3))  # a body that is not read
    assert answer.status_code == 403 and answer.headers["x-request-id"]
    assert "x-request-id" not in buyer.http.get("/v1/nothing").headers


def test_a_stolen_token_is_in_the_log_of_the_service(databases: Databases, backoffice: BackofficeProcess) -> None:
    with httpx.Client(base_url=backoffice.url, timeout=20) as http:
        user_id = register(http).json()["id"]
        token = login(http).json()["refresh_token"]
        assert refresh(http, token).status_code == 200
        age_use(databases)
        assert refresh(http, token).status_code == 401
    lines = [line for line in backoffice.log.splitlines() if user_id in line and "account action" in line]
    assert any("user.token_reused" in line for line in lines), lines


async def test_the_act_knows_only_entries_that_are_committed(accounts: Accounts) -> None:
    with act_as(Act("someone")) as act:
        with contextlib.suppress(ZeroDivisionError):
            async with accounts.stores.catalogue.connection() as connection:
                await record(connection, Action.SALE_CHANGE, "sale:1")
                raise ZeroDivisionError
        assert act.recorded == []
        async with accounts.stores.catalogue.connection() as connection:
            await record(connection, Action.SALE_CHANGE, "sale:2")
            assert act.recorded == []
        assert [entry.object for entry in act.recorded] == ["sale:2"]


def test_values_that_python_takes_for_equal() -> None:
    assert differences({"a": True}, {"a": 1}) == ({"a": True}, {"a": 1})
    assert differences({"a": {"x": 0, "y": 1}}, {"a": {"y": True, "x": 0}})[1] == {"a": {"y": True, "x": 0}}
    assert differences({"a": {"x": 0, "y": 1}}, {"a": {"y": 1, "x": 0}}) == ({}, {})


def test_attributes_that_become_look_alikes(staff: Staff) -> None:
    product = staff.product(attributes={"new": 1})
    one = f"/v1/products/{product['id']}"
    assert staff.http.patch(one, json={"attributes": {"new": True}}, headers={"If-Match": "*"}).status_code == 200
    entry = done(staff, "product.change", f"product:{product['id']}")
    assert entry["before"] == {"attributes": {"new": 1}} and entry["after"]["attributes"]["new"] is True


def test_prices_of_a_sale_with_many_items_are_all_recorded(staff: Staff) -> None:
    sale = staff.draft(skus=80)
    items = [
        {**item, "price_minor": 777 if place == 79 else item["price_minor"]} for place, item in enumerate(sale["items"])
    ]
    kept = [{name: item[name] for name in ("sku", "stock", "price_minor", "per_user_limit")} for item in items]
    assert staff.http.patch(f"/v1/sales/{sale['id']}", json={"items": kept}).status_code == 200
    entry = done(staff, "sale.change", f"sale:{sale['id']}")
    assert (entry["before"]["items"][79]["price_minor"], entry["after"]["items"][79]["price_minor"]) == (500, 777)


async def test_a_dead_letter_of_a_mail_leaves_no_address(backoffice: BackofficeProcess, staff: Staff) -> None:
    """Mail servers repeat the address in the reason of a refusal."""
    queues = Queues(backoffice)
    try:
        letter = await queues.kill(b"x", message_id="notice-1", reasons=("550 <ada@shop.example>: none",))
    finally:
        await queues.letters.close()
        await queues.queue.close()
    assert staff.http.delete(f"/v1/dead-letters/{letter}").status_code == 204
    entry = done(staff, "dead_letter.delete", letter)  # the id alone, which is a number, finds the object
    assert entry["before"]["message_id"] == "notice-1"
    assert "ada@" not in staff.http.get("/v1/audit").text


def test_ids_in_upper_case(staff: Staff, people: People) -> None:
    sale, buyer = staff.draft(), people.make("buyer")
    assert buyer.http.post(f"/v1/sales/{sale['id'].upper()}/pause").status_code == 403
    (entry,) = refused(staff, object=f"sale:{sale['id']}")
    assert entry["object"] == f"sale:{sale['id']}"
    for query in ({"object": sale["id"].upper()}, {"object": f"sale:{sale['id'].upper()}"}):
        assert entry in entries(staff, **query)
    assert entry in entries(staff, actor=str(buyer.id).upper())


def test_the_environment_does_not_name_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = operator_act().actor
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "another\udcff")
    assert operator_act().actor == usual and usual.isascii()
    monkeypatch.setattr("runtime.audit.acts.os.getuid", lambda: 4_000_000)  # an id without a name, in a container
    assert operator_act().actor == "operator:4000000"


def test_an_address_is_no_filter(staff: Staff) -> None:
    """An export records its filters."""
    for name in ("actor", "object", "action"):
        assert staff.http.get("/v1/audit/export", params={name: "ada@shop.example"}).status_code == 422
    assert staff.http.get("/v1/audit", params={"actor": "operator:ada@ad.example"}).status_code == 200


async def test_exports_at_once_are_bounded(accounts: Accounts) -> None:
    await add(accounts, 1)
    exports = Exports(AuditLog(accounts.stores))
    running = [exports.begin(Filters()) for _ in range(EXPORTS_MAX)]
    with pytest.raises(Refused) as refused_:
        exports.begin(Filters())
    assert refused_.value.details.problem.value == "overloaded" and refused_.value.details.retry_after_s
    while await running[0].next_piece() is not None:
        pass
    running[0].close()  # again, by admission
    exports.begin(Filters())
    with pytest.raises(Refused):
        exports.begin(Filters())
    running[1].close()
    exports.begin(Filters())


def test_an_export_makes_room_when_its_reader_leaves(staff: Staff) -> None:
    def begin(method: str) -> int:
        with staff.http.stream(method, "/v1/audit/export") as answer:
            return answer.status_code

    for _ in range(EXPORTS_MAX + 2):
        for method in ("HEAD", "GET"):
            deadline = time.monotonic() + 20
            while (status := begin(method)) != 200:  # the service notices a moment later that a reader has left
                assert status == 503 and time.monotonic() < deadline
                time.sleep(0.1)


async def test_an_export_ends_with_its_database() -> None:
    class Away:
        async def page(self, *_: Any, **__: Any) -> list[Entry]:
            raise psycopg.OperationalError

    log: Any = Away()
    export = Export(log, Filters())
    assert await export.next_piece()
    with pytest.raises(ExportBroken):  # an OSError, which ends the connection without the end of the body
        await export.next_piece()


def test_changes_of_the_own_account_are_bounded(people: People, staff: Staff) -> None:
    buyer = people.make("buyer")
    statuses = [
        buyer.http.patch("/v1/users/me", json={"name": f"Ada {place}"}).status_code
        for place in range(PROFILE_ACCOUNT.attempts_max + 1)
    ]
    assert statuses == [200] * PROFILE_ACCOUNT.attempts_max + [429]
    assert buyer.http.patch("/v1/users/me", json={"name": buyer.me()["name"]}).status_code == 200  # changes nothing
    assert len([e for e in entries(staff, actor=str(buyer.id)) if e["outcome"] == "done"]) == len(statuses) - 1


async def test_the_actors_of_requests_at_once(backoffice: BackofficeProcess, people: People, staff: Staff) -> None:
    buyers = [people.make("buyer") for _ in range(8)]

    async def work(buyer: Any) -> None:
        async with httpx.AsyncClient(base_url=backoffice.url, headers=buyer.http.headers, timeout=20) as client:
            for place in range(4):
                answer = await client.patch("/v1/users/me", json={"name": f"Ada {place}"})
                assert answer.status_code == 200

    await asyncio.gather(*map(work, buyers))
    changes = [entry for entry in entries(staff, action="user.change") if entry["outcome"] == "done"]
    assert len(changes) == 32
    assert {(entry["actor"], entry["object"]) for entry in changes} == {(str(b.id), f"user:{b.id}") for b in buyers}
    assert len({entry["request_id"] for entry in changes}) == 32


def test_a_value_cannot_begin_a_cell_of_its_own(staff: Staff) -> None:
    """Where the comma is the decimal sign, spreadsheets split lines at semicolons."""
    name = "a;=cmd|' /C calc'!A0;"
    staff.product(name=name)
    text = staff.http.get("/v1/audit/export", params={"action": "product.create"}).text
    assert ";" not in text
    (row,) = csv.DictReader(io.StringIO(text))
    assert json.loads(row["after"])["name"] == name


def test_a_product_with_a_value_that_json_cannot_hold_can_be_deleted(staff: Staff, databases: Databases) -> None:
    product = staff.product()
    with psycopg.connect(databases.catalogue_dsn, autocommit=True) as connection:
        written = "UPDATE products SET attributes = '{\"n\": 1000000000000000000000000000000}' WHERE id = %s"
        connection.execute(written, [product["id"]])
    one = f"/v1/products/{product['id']}"
    assert staff.http.delete(one, headers={"If-Match": "*"}).status_code == 204
    entry = done(staff, "product.delete", f"product:{product['id']}")
    assert set(entry["before"]["attributes"]) == {"bytes", "sha256"} and entry["before"]["sku"] == product["sku"]
    odd = {"huge": 10**30, "half": "\ud800", "deep": [[]]}
    for _ in range(300):
        odd["deep"] = [odd["deep"]]
    assert set(differences({}, odd)[1]) == set(odd)
    assert members_json(odd)
