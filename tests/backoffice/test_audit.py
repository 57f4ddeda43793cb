"""The audit log: every change leaves an entry in its own transaction; refusals, reading, export, retention."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest

from backoffice.audit.export import Export
from backoffice.audit.refusals import MANY, Refusal, Refusals
from backoffice.audit.retention import Retention
from backoffice.audit.store import AuditLog, Filters, first_id
from backoffice.auth import routes as auth_routes
from backoffice.catalogue import routes as product_routes
from backoffice.dead_letters import routes as letter_routes
from backoffice.limits.attempts import LOGIN_ACCOUNT_FROM_CLIENT
from backoffice.notices import routes as notice_routes
from backoffice.orders import routes as order_routes
from backoffice.sales import routes as sale_routes
from backoffice.users import routes as user_routes
from backoffice.webhooks import routes as webhook_routes
from domain import topology
from domain.notices import NoticeKind
from runtime.audit import Act, Action, act_as, record
from runtime.queue import FailureKind
from tests.backoffice.test_auth import PASSWORD, age_use, login, refresh, register
from tests.backoffice.test_dead_letters import Queues
from tests.backoffice.test_recovery import NEW, mailed
from tests.backoffice.test_undo import undo_token
from tests.fixtures.fix_backoffice import BackofficeProcess, Staff
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_people import People, Person
from tests.fixtures.fix_users import Accounts

ADMIN = UUID(int=1)  # of the fixture `staff`
REFUSAL_WAIT_S = 20.0


@pytest.fixture
def http(backoffice: BackofficeProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=backoffice.url, timeout=20) as client:
        yield client


@pytest.fixture
async def queues(backoffice: BackofficeProcess) -> Any:
    queues = Queues(backoffice)
    yield queues
    await queues.letters.close()
    await queues.queue.close()


def entries(staff: Staff, **filters: str) -> list[dict[str, Any]]:
    answer = staff.http.get("/v1/audit", params={"limit": "200", **filters})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


def done(staff: Staff, action: str, object_: str) -> dict[str, Any]:
    """The only entry of a change."""
    (entry,) = entries(staff, action=action, object=object_)
    assert entry["outcome"] == "done"
    return entry


def refused(staff: Staff, count: int = 1, **filters: str) -> list[dict[str, Any]]:
    """Entries of refusals, which are written soon.

    Equal refusals of earlier tests are put together with new ones, so filters must name an object or an actor of this
    test.
    """
    deadline = time.monotonic() + REFUSAL_WAIT_S
    while True:
        found = [entry for entry in entries(staff, **filters) if entry["outcome"] != "done"]
        if len(found) >= count or time.monotonic() > deadline:
            assert len(found) == count, found
            return found
        time.sleep(0.1)


def test_changes_of_accounts(
    http: httpx.Client, staff: Staff, people: People, databases: Databases, backoffice: BackofficeProcess
) -> None:
    user_id = register(http, "ada@shop.example").json()["id"]
    about = f"user:{user_id}"
    made = done(staff, "user.register", about)
    assert (made["actor"], made["before"], made["after"]) == (user_id, None, {"role": "buyer"})
    assert made["client"] == "127.0.0.1" and made["request_id"]
    tokens = login(http, "ada@shop.example").json()
    assert done(staff, "user.login", about)["actor"] == user_id
    assert http.post("/v1/auth/logout", json={"refresh_token": tokens["refresh_token"]}).status_code == 204
    assert http.post("/v1/auth/logout", json={"refresh_token": tokens["refresh_token"]}).status_code == 204
    done(staff, "user.logout", about)  # the second one ends nothing
    me = {"Authorization": f"Bearer {login(http, 'ada@shop.example').json()['access_token']}"}
    changed = http.patch("/v1/users/me", json={"name": "Grace", "email": "grace@shop.example"}, headers=me)
    assert changed.status_code == 200
    entry = done(staff, "user.change", about)
    assert (entry["actor"], entry["before"], entry["after"]) == (user_id, {}, {"personal": ["email", "name"]})
    assert entry["request_id"] == changed.headers["x-request-id"]
    verify = mailed(databases, UUID(user_id), NoticeKind.VERIFY_EMAIL)
    assert http.post("/v1/auth/verify-email", json={"token": verify}).status_code == 204
    assert done(staff, "user.verify_email", about)["actor"] == user_id
    new = {"old_password": PASSWORD, "new_password": NEW}
    assert http.post("/v1/auth/password", json=new, headers=me).status_code == 200
    done(staff, "user.password_change", about)
    reset = mailed(databases, UUID(user_id), NoticeKind.PASSWORD_RESET)
    body = {"token": reset, "new_password": PASSWORD}
    assert http.post("/v1/auth/password-reset", json=body).status_code == 204
    assert done(staff, "user.password_reset", about)["actor"] == user_id
    undo = undo_token(databases, UUID(user_id), "ada@shop.example")
    assert http.post("/v1/auth/undo-email-change", json={"token": undo}).status_code == 204
    done(staff, "user.undo_email_change", about)
    assert staff.http.post(f"/v1/users/{user_id}/logout").status_code == 204
    assert done(staff, "user.end_sessions", about)["actor"] == str(ADMIN)
    role = staff.http.patch(f"/v1/users/{user_id}", json={"role": "staff"})
    assert role.status_code == 200, role.text
    entry = done(staff, "user.role", about)
    assert (entry["actor"], entry["before"]["role"], entry["after"]["role"]) == (str(ADMIN), "buyer", "staff")
    assert staff.http.delete(f"/v1/users/{user_id}").status_code == 204
    assert done(staff, "user.erase", about)["before"] == {"role": "staff"}
    # The log is kept apart from its objects and has no personal data; the service's log has neither.
    assert len(entries(staff, object=about)) >= 11
    everything = staff.http.get("/v1/audit", params={"limit": "200"}).text + backoffice.log
    assert not [word for word in ("grace@", "ada@", "Grace", "Ada") if word in everything]
    assert '"account action"' in backoffice.log and "user.password_reset" in backoffice.log
    own = people.make("buyer")
    assert own.http.post("/v1/auth/logout-everywhere").status_code == 204
    done(staff, "user.end_sessions", f"user:{own.id}")


def test_a_stolen_refresh_token(http: httpx.Client, staff: Staff, databases: Databases) -> None:
    user_id = register(http).json()["id"]
    token = login(http).json()["refresh_token"]
    assert refresh(http, token).status_code == 200
    age_use(databases)
    assert refresh(http, token).status_code == 401
    assert done(staff, "user.token_reused", f"user:{user_id}")["actor"] == user_id


def test_changes_of_products(staff: Staff) -> None:
    product = staff.product(price_minor=500)
    about = f"product:{product['id']}"
    made = done(staff, "product.create", about)
    assert (made["actor"], made["after"]["price_minor"], made["after"]["sku"]) == (str(ADMIN), 500, product["sku"])
    one = f"/v1/products/{product['id']}"
    changed = staff.http.patch(one, json={"price_minor": 900}, headers={"If-Match": '"1"'})
    assert changed.status_code == 200, changed.text
    entry = done(staff, "product.change", about)
    assert (entry["before"], entry["after"]) == ({"price_minor": 500}, {"price_minor": 900})
    assert staff.http.patch(one, json={"price_minor": 1}, headers={"If-Match": '"1"'}).status_code == 412
    assert refused(staff, action="product.change", object=about)[0]["outcome"] == "precondition_failed"
    batch = {
        "items": [
            {"sku": product["sku"], "price_minor": 700},
            {"sku": "NEW-1", "name": "New", "price_minor": 5, "currency": "EUR"},
            {"sku": "none"},
        ]
    }
    assert staff.http.post("/v1/products/import", json={**batch, "dry_run": True}).status_code == 200
    assert entries(staff, action="product.import") == []
    assert staff.http.post("/v1/products/import", json=batch).status_code == 200
    assert staff.http.post("/v1/products/import", json=batch).status_code == 200  # changes nothing any more
    entry = done(staff, "product.import", about)
    assert (entry["before"], entry["after"]) == ({"price_minor": 900}, {"price_minor": 700})
    assert len(entries(staff, action="import")) == 2
    assert staff.http.delete(one, headers={"If-Match": "*"}).status_code == 204
    assert done(staff, "product.delete", about)["before"]["price_minor"] == 700
    long = staff.product(description="x" * 9000)
    described = done(staff, "product.create", f"product:{long['id']}")["after"]["description"]
    assert described["bytes"] == 9002 and len(described["sha256"]) == 64


def test_changes_of_sales(staff: Staff) -> None:
    sale = staff.draft(stock=10)
    about = f"sale:{sale['id']}"
    assert done(staff, "sale.create", about)["after"]["items"][0]["stock"] == 10
    changed = staff.http.patch(f"/v1/sales/{sale['id']}", json={"hold_seconds": 60})
    assert changed.status_code == 200
    entry = done(staff, "sale.change", about)
    assert (entry["before"], entry["after"]) == ({"hold_seconds": 600}, {"hold_seconds": 60})
    for verb, before, after in (
        ("publish", None, None),
        ("pause", {"paused": False}, {"paused": True}),
        ("resume", {"paused": True}, {"paused": False}),
        ("end", None, None),
    ):
        if verb == "end":
            units = {"sku": sale["items"][0]["sku"], "quantity": 5}
            for _ in range(2):  # the repeat changes nothing
                headers = {"Idempotency-Key": "k"}
                added = staff.http.post(f"/v1/sales/{sale['id']}/restock", json=units, headers=headers)
                assert added.status_code == 200
            assert done(staff, "sale.restock", about)["after"] == units
        for _ in range(2):
            assert staff.act(sale, verb).status_code == 200
        entry = done(staff, f"sale.{verb}", about)
        if after is not None:
            assert (entry["before"], entry["after"]) == (before, after)
        assert entry["actor"] == str(ADMIN)
    assert entry["after"]["ended"] is True
    assert staff.act(sale, "pause").status_code == 409
    assert refused(staff, action="sale.pause", object=sale["id"])[0]["outcome"] == "sale_state_conflict"


async def test_dead_letters(staff: Staff, queues: Queues) -> None:
    for verb, call in (("replay", staff.http.post), ("delete", staff.http.delete)):
        letter = await queues.kill(b"x", message_id=verb)
        path = f"/v1/dead-letters/{letter}" + ("/replay" if verb == "replay" else "")
        assert call(path).status_code in (200, 204)
        call(path)  # a repeat changes nothing
        entry = done(staff, f"dead_letter.{verb}", f"dead_letter:{letter}")
        assert entry["before"]["queue"] == topology.order_queue(2)
        assert entry["before"]["kind"] == FailureKind.REFUSED_BY_DATABASE


def test_every_operation_that_changes_something_has_an_action(staff: Staff) -> None:
    """The operations of the OpenAPI document, of which the tests above do each at least once."""
    document = staff.http.get("/openapi.json").json()
    operations = {
        (method.upper(), path)
        for path, methods in document["paths"].items()
        for method in methods
        if method in ("post", "put", "patch", "delete")
    }
    assert operations == {
        ("POST", "/v1/auth/register"),
        ("POST", "/v1/auth/login"),
        ("POST", "/v1/auth/logout"),
        ("POST", "/v1/auth/password"),
        ("POST", "/v1/auth/password-reset"),
        ("POST", "/v1/auth/verify-email"),
        ("POST", "/v1/auth/undo-email-change"),
        ("POST", "/v1/auth/logout-everywhere"),
        ("POST", "/v1/auth/refresh"),  # changes no right; its refusals and stolen tokens are recorded
        ("POST", "/v1/users/{user_id}/logout"),
        ("PATCH", "/v1/users/me"),
        ("DELETE", "/v1/users/me"),
        ("PATCH", "/v1/users/{user_id}"),
        ("DELETE", "/v1/users/{user_id}"),
        ("POST", "/v1/products"),
        ("PATCH", "/v1/products/{product_id}"),
        ("DELETE", "/v1/products/{product_id}"),
        ("POST", "/v1/products/import"),
        ("POST", "/v1/sales"),
        ("PATCH", "/v1/sales/{sale_id}"),
        ("DELETE", "/v1/sales/{sale_id}"),  # tests/backoffice/test_sales.py
        ("POST", "/v1/sales/{sale_id}/publish"),
        ("POST", "/v1/sales/{sale_id}/pause"),
        ("POST", "/v1/sales/{sale_id}/resume"),
        ("POST", "/v1/sales/{sale_id}/end"),
        ("POST", "/v1/sales/{sale_id}/restock"),
        ("POST", "/v1/orders/{order_id}/cancel"),  # tests/backoffice/test_refunds.py
        ("POST", "/v1/orders/{order_id}/refund"),
        ("PATCH", "/v1/users/me/preferences"),  # tests/backoffice/test_preferences.py
        ("POST", "/v1/users/me/push-subscriptions"),
        ("DELETE", "/v1/users/me/push-subscriptions"),
        ("POST", "/v1/dead-letters/{letter_id}/replay"),
        ("DELETE", "/v1/dead-letters/{letter_id}"),
        ("POST", "/v1/webhooks"),  # tests/backoffice/test_webhooks.py
        ("DELETE", "/v1/webhooks/{webhook_id}"),
        ("POST", "/v1/webhooks/{webhook_id}/enable"),
        ("POST", "/v1/webhooks/{webhook_id}/disable"),
        ("POST", "/v1/webhooks/{webhook_id}/secret"),
        ("POST", "/v1/webhooks/{webhook_id}/ping"),
        ("POST", "/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/replay"),
    }, "a new operation: record its change, and test the entry here"
    none: Any = None
    declared = [
        *auth_routes.routes(auth_routes.AuthRoutes(none, none)),
        *user_routes.routes(user_routes.UserRoutes(none)),
        *product_routes.routes(product_routes.ProductRoutes(none, none, none)),
        *sale_routes.routes(sale_routes.SaleRoutes(none)),
        *notice_routes.routes(notice_routes.NoticeRoutes(none, none, default_language="en")),
        *order_routes.routes(order_routes.OrderRoutes(none, none)),
        *letter_routes.routes(letter_routes.DeadLetterRoutes(none, none)),
        *webhook_routes.routes(webhook_routes.WebhookRoutes(none, key=None, allowed=())),
    ]
    changing = [route for route in declared if route.method != "GET"]
    assert len(changing) == len(operations)
    assert [route.path for route in changing if route.action is None] == []


def test_wrong_passwords_and_lock_outs(http: httpx.Client, staff: Staff, backoffice: BackofficeProcess) -> None:
    email = f"{uuid4()}@shop.example"
    user_id = register(http, email).json()["id"]
    for _ in range(LOGIN_ACCOUNT_FROM_CLIENT.attempts_max):
        assert login(http, email, "wrong").status_code == 401
    assert login(http, email, "wrong").status_code == 429
    of_user = refused(staff, 2, action="user.login", object=user_id)
    assert {entry["outcome"] for entry in of_user} == {"credentials_invalid", "rate_limited"}
    assert {(entry["actor"], entry["client"]) for entry in of_user} == {("anonymous", "127.0.0.1")}
    assert email not in backoffice.log
    assert "credentials_invalid" in backoffice.log


def test_addresses_that_are_none_do_not_stop_the_log(http: httpx.Client, staff: Staff) -> None:
    known = f"{uuid4()}@shop.example"
    user_id = register(http, known).json()["id"]
    for email in ("\0@shop.example", "a\u0000", "\u00e9@shop.example", "x" * 250, "nobody@shop.example"):
        assert login(http, email).status_code in (401, 422)
    assert login(http, known, "wrong").status_code == 401
    assert refused(staff, action="user.login", object=user_id)
    assert [entry for entry in entries(staff, action="user.login", object="unknown") if entry["outcome"] != "done"]


async def test_what_cannot_be_stored_does_not_stop_the_log(accounts: Accounts) -> None:
    async def nobody(_: str) -> UUID | None:
        return None

    refusals = Refusals(accounts.stores.catalogue, nobody)
    refusals.note(Refusal(Action.USER_LOGIN, "\0", "anonymous", None, "rate_limited"), request_id=None)
    await refusals.step()
    refusals.note(Refusal(Action.USER_LOGIN, "unknown", "anonymous", None, "rate_limited"), request_id=None)
    assert await refusals.step() == 1
    (entry,) = await AuditLog(accounts.stores).page(Filters(), before=None, limit=10)
    assert entry.object == "unknown"


def test_actions_that_a_role_does_not_allow(staff: Staff, people: People) -> None:
    sale = staff.draft()
    buyer, clerk = people.make("buyer"), people.make("staff")
    other = people.make("staff")
    for _ in range(3):
        assert buyer.http.post(f"/v1/sales/{sale['id']}/publish").status_code == 403
    assert clerk.http.patch(f"/v1/users/{other.id}", json={"role": "admin"}).status_code == 403
    (of_buyer,) = refused(staff, actor=str(buyer.id))
    assert (of_buyer["action"], of_buyer["object"], of_buyer["outcome"]) == (
        "sale.publish", f"sale:{sale['id']}", "forbidden",
    )  # fmt: skip
    (of_clerk,) = refused(staff, actor=str(clerk.id))
    assert (of_clerk["action"], of_clerk["object"]) == ("user.change", f"user:{other.id}")
    for reader, status in ((buyer, 403), (clerk, 200)):
        assert reader.http.get("/v1/audit").status_code == status
    assert httpx.get(f"{staff.http.base_url}/v1/audit").status_code == 401


async def test_a_change_and_its_entry_are_one_transaction(accounts: Accounts, databases: Databases) -> None:
    """Without its entry no change commits: the table refuses a second entry with one id."""
    user = await accounts.make()

    def count() -> int:
        return len(accounts.rows("SELECT id FROM audit.entries"))

    before = count()
    await accounts.change(user, name="Grace")
    assert count() == before + 1
    for dsn in databases.shard_dsns:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("ALTER TABLE audit.entries ADD CONSTRAINT no_more CHECK (false) NOT VALID")
    try:
        newest = await accounts.users.newest(user.id)
        assert newest is not None
        with pytest.raises(psycopg.errors.CheckViolation):
            await accounts.change(newest, name="Mary")
        assert await accounts.users.newest(user.id) == newest
    finally:
        for dsn in databases.shard_dsns:
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("ALTER TABLE audit.entries DROP CONSTRAINT no_more")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit.entries SET actor = 'another'",
        "DELETE FROM audit.entries",
        "TRUNCATE audit.entries",
    ],
)
async def test_entries_cannot_be_changed(accounts: Accounts, statement: str) -> None:
    await accounts.make()
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
        accounts.rows(statement)


def test_pages_and_filters(staff: Staff, people: People) -> None:
    sales = [staff.draft() for _ in range(4)]
    people.make("buyer").http.post("/v1/auth/logout-everywhere")
    whole = entries(staff)
    assert [entry["id"] for entry in whole] == sorted((entry["id"] for entry in whole), reverse=True)
    shown: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = staff.http.get("/v1/audit", params={"limit": "3", **cursor}).json()
        shown += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert shown == whole

    def by(**filters: str) -> int:
        return len(entries(staff, **filters))

    assert by(action="sale.create") == 4 and by(action="create") == 8 and by(action="no.such") == 0
    assert by(object=f"sale:{sales[0]['id']}") == by(object=sales[0]["id"]) == 1
    assert by(actor=str(ADMIN)) == by(actor=f"user:{ADMIN}") == len(whole) - 1
    middle = whole[3]["at"]
    assert [entry for entry in whole if entry["at"] >= middle] == entries(staff, since=middle)
    for query in ({"cursor": "x"}, {"since": "yesterday"}, {"actor": "\0"}, {"limit": "0"}):
        assert staff.http.get("/v1/audit", params=query).status_code == 422
    for query in ({"since": "yesterday"}, {"actor": "\0"}):
        assert staff.http.get("/v1/audit/export", params=query).status_code == 422


def test_export(staff: Staff, people: People) -> None:
    staff.product(name="=HYPERLINK(1)")
    buyer: Person = people.make("buyer")
    assert buyer.http.get("/v1/audit/export").status_code == 403
    answer = staff.http.get("/v1/audit/export", params={"action": "product.create"})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/csv")
    assert "audit.csv" in answer.headers["content-disposition"]
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert (row["actor"], row["action"], row["outcome"]) == (str(ADMIN), "product.create", "done")
    assert not [cell for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]
    done(staff, "audit.export", "audit:entries")
    assert refused(staff, actor=str(buyer.id))[0]["action"] == "audit.export"


async def add(accounts: Accounts, count: int, *, actor: str = "someone") -> None:
    async with accounts.stores.catalogue.connection() as connection:
        with act_as(Act(actor)):
            for _ in range(count):
                await record(connection, Action.SALE_CHANGE, "sale:1", after={"text": "=1"})


async def test_an_export_of_many_pages_and_its_bound(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backoffice.audit.export.PAGE_ENTRIES", 4)
    await add(accounts, 10, actor="-formula")
    log = AuditLog(accounts.stores)

    async def rows(**bounds: Any) -> list[list[str]]:
        export, pieces = Export(log, Filters(), **bounds), []
        while (piece := await export.next_piece()) is not None:
            pieces.append(piece.decode())
        return list(csv.reader(io.StringIO("".join(pieces))))[1:]

    assert {row[1] for row in await rows()} == {"'-formula"}
    assert len(await rows()) == len(await rows(entries_max=10)) == 10
    cut = await rows(entries_max=6)
    assert len(cut) == 7 and "older entries" in cut[-1][4]


async def test_retention(accounts: Accounts, databases: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backoffice.audit.retention.BATCH_ENTRIES", 2)
    user = await accounts.make()
    await add(accounts, 5)
    for dsn in (databases.catalogue_dsn, *databases.shard_dsns):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")  # the table refuses to be changed
            connection.execute("UPDATE audit.entries SET at = at - interval '40 days'")
            for (entry,) in connection.execute("SELECT id FROM audit.entries").fetchall():
                old = UUID(int=entry.int - (40 * 86_400_000 << 80))
                connection.execute("UPDATE audit.entries SET id = %s WHERE id = %s", (old, entry))
    await accounts.change(user, name="Grace")
    databases_ = AuditLog(accounts.stores).databases
    assert await Retention(databases_, days=41).step() == (0, True)
    # At its bound in time a step leaves the rest to the next one.
    assert await Retention(databases_, days=39).step(work_s_max=0.0) == (2, False)
    assert await Retention(databases_, days=39).step() == (4, True)
    (entry,) = await AuditLog(accounts.stores).page(Filters(), before=None, limit=10)
    assert entry.action == "user.change"


async def test_a_flood_of_refusals_makes_few_entries(accounts: Accounts) -> None:
    async def nobody(_: str) -> UUID | None:
        return None

    refusals = Refusals(accounts.stores.catalogue, nobody, keys_max=3, window_s=0.0)

    def note(client: str) -> None:
        refusals.note(Refusal(Action.USER_LOGIN, "unknown", "anonymous", client, "rate_limited"), request_id="r")

    for number in range(5):
        note(f"10.0.0.{number}")
    for _ in range(1000):
        note("10.0.0.1")
    assert await refusals.step() == 4
    found = await AuditLog(accounts.stores).page(Filters(), before=None, limit=10)
    assert {(entry.actor, entry.client): entry.times for entry in found} == {
        ("anonymous", "10.0.0.0"): 1, ("anonymous", "10.0.0.1"): 1001, ("anonymous", "10.0.0.2"): 1, (MANY, None): 2,
    }  # fmt: skip
    assert await refusals.step() == 0  # and the window has ended: new refusals begin anew
    note("10.0.0.9")
    assert await refusals.step() == 1


async def test_refusals_wait_for_a_database_that_is_away(accounts: Accounts) -> None:
    """Each is written once, whether the first write was lost or not."""

    async def away(_: str) -> UUID | None:
        raise psycopg.OperationalError

    refusals = Refusals(accounts.stores.catalogue, away)
    for _ in range(3):
        refusals.note(Refusal(Action.USER_LOGIN, "", "anonymous", None, "rate_limited", "a@b.example"), request_id=None)
    with pytest.raises(psycopg.OperationalError):
        await refusals.step()
    user_id = uuid4()

    async def there(_: str) -> UUID | None:
        return user_id

    refusals._find_user = there  # the same notes, with databases that answer again
    assert await refusals.step() == 1
    (entry,) = await AuditLog(accounts.stores).page(Filters(), before=None, limit=10)
    assert (entry.object, entry.times) == (f"user:{user_id}", 3)


def test_the_bound_of_ids_since_a_time() -> None:
    assert first_id(datetime.fromtimestamp(1, UTC)).int >> 80 == 1000
