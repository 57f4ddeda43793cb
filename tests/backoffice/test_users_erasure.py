"""An erasure removes all personal data, keeps orders countable, and completes after a crash at any step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
import redis
from psycopg import sql

from backoffice.users.store import EmailTaken
from backoffice.web.messages import Caller, Refused, Role
from domain import ids
from domain.problems import Problem
from tests.backoffice.test_orders import entry, store
from tests.backoffice.test_users_addresses import Crash, dying_at, login
from tests.fixtures.fix_backoffice import BackofficeProcess
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_people import People
from tests.fixtures.fix_users import Accounts

EMAIL, NAME, PASSWORD = "Augusta@Byron.example", "Augusta Ada King", "correct horse battery"
OF_THE_PERSON = ("augusta", "byron", "king")
# Tables that keep the user id: orders, the record of the erasure, and the cutoff of its tokens.
KEPT = {"orders", "erasures", "session_ends"}


def caller_of(user_id: UUID, role: Role = Role.BUYER) -> Caller:
    return Caller(user_id, role, expires_at_s=2**40, auth_time_s=int(time.time()))


def tables(databases: Databases) -> Iterator[tuple[psycopg.Connection[Any], str]]:
    for dsn in (databases.catalogue_dsn, *databases.shard_dsns):
        with psycopg.connect(dsn, autocommit=True) as connection:
            for (table,) in connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            ).fetchall():
                yield connection, table


def rows_with(databases: Databases, *words: str) -> set[str]:
    """Tables that contain any of the words."""
    found = set()
    for connection, table in tables(databases):
        query = sql.SQL("SELECT count(*) FROM {table} AS t WHERE t::text ILIKE ANY (%s)")
        row = connection.execute(
            query.format(table=sql.Identifier(table)), ([f"%{word}%" for word in words],)
        ).fetchone()
        if row is not None and row[0]:
            found.add(table)
    return found


def books(databases: Databases) -> list[Any]:
    """All columns that orders are counted by, and the public view."""
    found = []
    for dsn in databases.shard_dsns:
        with psycopg.connect(dsn) as connection:
            for name in ("orders", "order_transitions", "quota", "dead_lettered", "waiting_entries", "audit_orders"):
                found.append(connection.execute(f"SELECT t::text FROM {name} AS t ORDER BY 1").fetchall())
    return found


def redis_dump(client: redis.Redis) -> bytes:
    return b"\n".join(key + b" " + (client.dump(key) or b"") for key in client.scan_iter())


def test_an_erased_person_is_nowhere(
    people: People, databases: Databases, backoffice: BackofficeProcess, redis_client: redis.Redis
) -> None:
    admin = people.make("admin")
    logged_before = len(backoffice.log)  # the process serves other tests, too
    with httpx.Client(base_url=backoffice.url, timeout=20) as http:
        user = http.post("/v1/auth/register", json={"email": EMAIL, "password": PASSWORD, "name": NAME}).json()
        tokens = http.post("/v1/auth/login", json={"email": EMAIL, "password": PASSWORD}).json()
        http.post("/v1/auth/password-reset", json={"email": EMAIL})
        http.headers["Authorization"] = f"Bearer {tokens['access_token']}"
        user_id = UUID(user["id"])
        order = store(databases, entry(1, user_id))
        before = books(databases)
        assert http.get("/v1/users/me").json() == user
        assert "users" in rows_with(databases, *OF_THE_PERSON)

        assert http.delete("/v1/users/me").status_code == 204

        # Dispatchers delete rows of the outbox; the notifications worker finds no account for these notices.
        assert rows_with(databases, *OF_THE_PERSON) <= {"outbox"}
        assert rows_with(databases, str(user_id)) - {"outbox"} == KEPT
        client_of_cache = redis.Redis(port=redis_client.get_connection_kwargs()["port"], db=1)
        with client_of_cache:
            dump = (redis_dump(redis_client) + redis_dump(client_of_cache)).lower()
        assert not any(word.encode() in dump for word in OF_THE_PERSON)
        assert not any(word in backoffice.log[logged_before:].lower() for word in OF_THE_PERSON)

        # The counts are unchanged, and staff still see the order.
        assert books(databases) == before
        assert admin.http.get("/v1/orders", params={"user_id": str(user_id)}).json()["items"][0]["order_id"] == str(
            order["order_id"]
        )
        # Neither the tokens nor the password are accepted, and the answers do not reveal the erasure.
        assert http.get("/v1/users/me").status_code == 401
        refreshed = http.post("/v1/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
        assert (refreshed.status_code, refreshed.json()["code"]) == (401, "token_invalid")
        gone = http.post("/v1/auth/login", json={"email": EMAIL, "password": PASSWORD})
        unknown = http.post("/v1/auth/login", json={"email": "nobody@x.example", "password": PASSWORD})
        assert (gone.status_code, gone.json()) == (401, unknown.json())
        # Repeating gives the same answer, and the address is free for another account.
        assert admin.http.delete(f"/v1/users/{user_id}").status_code == 204
        assert admin.http.delete(f"/v1/users/{user_id}", headers={"If-Match": '"1"'}).status_code == 204
        for answer in (
            admin.http.get(f"/v1/users/{user_id}"),
            admin.http.patch(f"/v1/users/{user_id}", json={"name": "X"}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (404, "user_not_found")
        again = http.post("/v1/auth/register", json={"email": EMAIL, "password": PASSWORD, "name": NAME})
        assert again.status_code == 201 and again.json()["id"] != user["id"]


def test_staff_erase_on_request(people: People) -> None:
    staff, admin, buyer, other = (people.make(role) for role in ("staff", "admin", "buyer", "staff"))
    assert staff.http.delete(f"/v1/users/{buyer.id}", headers={"If-Match": '"2"'}).status_code == 412
    assert staff.http.delete(f"/v1/users/{buyer.id}", headers={"If-Match": '"1"'}).status_code == 204
    assert buyer.http.get("/v1/users/me").status_code == 401
    assert admin.http.delete(f"/v1/users/{other.id}").status_code == 204
    assert other.http.get("/v1/users").status_code == 401
    listed = admin.http.get("/v1/users").json()["items"]
    assert {user["id"] for user in listed} == {str(staff.id), str(admin.id)}
    for nobody in (ids.new_uuid7(), UUID(int=0)):
        answer = admin.http.delete(f"/v1/users/{nobody}")
        assert (answer.status_code, answer.json()["code"]) == (404, "user_not_found")


STEPS = [
    ("users", "forget", False),
    ("addresses", "work_off", False),
    ("addresses", "settle", True),
    ("addresses", "work_off", True),
    ("erasures", "finish_soon", False),
    ("sessions", "publish", False),
]


@pytest.mark.parametrize(("owner", "step", "after"), STEPS)
@pytest.mark.parametrize("healed_by", ["sweeper", "request"])
async def test_a_crash_within_an_erasure(
    accounts: Accounts, owner: str, step: str, after: bool, healed_by: str
) -> None:
    user = await accounts.make("ada@shop.example")
    caller = caller_of(user.id)
    assert await accounts.users.get(user.id) == user
    with dying_at(getattr(accounts, owner), step, after=after), pytest.raises(Crash):
        await accounts.service.erase(caller, user.id, None)
    # The account is gone after the first step, and the rest of it does not allow a login.
    assert await accounts.users.newest(user.id) is None
    assert await accounts.users.get(user.id) is None
    assert await login(accounts, "ada@shop.example") is None
    assert await accounts.erasures.is_finished(user.id) is False
    if healed_by == "request":
        await accounts.service.erase(caller, user.id, None)
    else:
        assert await accounts.sweep() == 0  # the erasure may still be in progress
        accounts.age(21)
        await accounts.sweep()
    assert await accounts.erasures.is_finished(user.id) is True
    assert accounts.index() == {}
    assert accounts.rows("SELECT email_folded FROM login_releases") == []
    assert accounts.ended == [user.id]
    accounts.age(100)
    assert await accounts.sweep() == 0


async def test_the_address_of_an_unfinished_erasure_is_free_at_once(accounts: Accounts) -> None:
    user = await accounts.make("ada@shop.example")
    with dying_at(accounts.erasures, "finish_soon"), pytest.raises(Crash):
        await accounts.erasures.erase(user, by=user.id)
    newcomer = await accounts.make("ADA@shop.example")
    await accounts.service.erase(caller_of(user.id), user.id, None)
    assert accounts.index() == {"ada@shop.example": (newcomer.id, True)}
    assert await accounts.users.newest(newcomer.id) == newcomer


async def test_steps_on_absent_servers_are_done_later(accounts: Accounts) -> None:
    user = await accounts.make()
    with dying_at(accounts.addresses, "work_off", error=psycopg.OperationalError):
        await accounts.service.erase(caller_of(user.id), user.id, None)
    assert await accounts.users.newest(user.id) is None
    assert await accounts.erasures.is_finished(user.id) is False
    accounts.age(21)
    await accounts.sweep()
    assert (await accounts.erasures.is_finished(user.id), accounts.index()) == (True, {})


async def test_erasure_races_with_changes(accounts: Accounts) -> None:
    """In every order of events, no account, address or claim remains."""
    for place in range(10):
        user = await accounts.make(f"u{place}@shop.example")
        caller = caller_of(user.id)
        results = await asyncio.gather(
            accounts.change(user, email=f"new{place}@shop.example"),
            accounts.service.erase(caller, user.id, None),
            accounts.change(user, email=f"other{place}@shop.example"),
            accounts.service.erase(caller, user.id, None),
            return_exceptions=True,
        )
        unexpected = [r for r in results if isinstance(r, BaseException) and not isinstance(r, EmailTaken | Refused)]
        assert not unexpected, unexpected
        await accounts.service.erase(caller, user.id, None)
    accounts.age(61)
    await accounts.sweep()
    assert accounts.index() == {}
    assert accounts.rows("SELECT id FROM users") == []
    assert accounts.rows("SELECT email_folded FROM login_releases") == []
    assert accounts.rows("SELECT user_id FROM erasures WHERE finished_at IS NULL") == []


async def test_an_account_is_erased_once_and_not_by_mistake(accounts: Accounts) -> None:
    user = await accounts.make()
    assert await accounts.change(user, name="Newer") is not None
    assert await accounts.erasures.erase(user, by=user.id) is False  # another version
    now = await accounts.users.newest(user.id)
    assert now is not None
    assert await accounts.erasures.erase(now, by=user.id) is True
    assert await accounts.erasures.erase(now, by=user.id) is False
    assert accounts.rows("SELECT erased_by FROM erasures") == [user.id]
    with pytest.raises(Refused) as refused:
        await accounts.service.erase(caller_of(user.id, Role.ADMIN), ids.new_uuid7(), None)
    assert refused.value.details.problem is Problem.USER_NOT_FOUND


def test_every_table_of_a_person_goes_with_the_account(databases: Databases) -> None:
    """Every table with a `user_id` must be deleted with the account, or be listed here with the reason."""
    with psycopg.connect(databases.shard_dsns[0]) as connection:
        with_user = {
            row[0]
            for row in connection.execute(
                "SELECT table_name FROM information_schema.columns JOIN information_schema.tables USING (table_name) "
                "WHERE column_name = 'user_id' AND columns.table_schema = 'public' AND table_type = 'BASE TABLE'"
            )
        }
        cascading = {
            row[0]
            for row in connection.execute(
                "SELECT conrelid::regclass::text FROM pg_constraint "
                "WHERE confrelid = 'users'::regclass AND contype = 'f' AND confdeltype = 'c'"
            )
        }
    by_hand = {
        "login_index",
        "login_releases",
    }  # holds an address; `Addresses` deletes its rows, because the entry may be in another shard
    money = {"payments"}  # names the user of its order, and no person
    assert with_user - cascading == KEPT | money | by_hand
