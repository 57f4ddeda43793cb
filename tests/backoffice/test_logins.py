"""Logins and refresh tokens in the shard: concurrent changes of password and role, and bounds on their number."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
import redis

from backoffice.auth import refresh
from backoffice.auth.refresh import RefreshTokens
from backoffice.stores import Stores
from backoffice.web.messages import Refused, Role
from domain.topology import Topology
from runtime.process.settings import load_settings
from runtime.process.supervision import TaskSupervisor
from tests.backoffice.test_auth import register
from tests.fixtures.fix_backoffice import BackofficeProcess
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_users import Accounts

TOPOLOGY = Topology()


@pytest.fixture
def buyer(backoffice: BackofficeProcess) -> UUID:
    """The id of an account."""
    with httpx.Client(base_url=backoffice.url, timeout=20) as http:
        return UUID(register(http).json()["id"])


def password_hash(databases: Databases, user_id: UUID) -> str:
    with psycopg.connect(shard_of(databases, user_id), autocommit=True) as connection:
        row = connection.execute("SELECT password_hash FROM users WHERE id = %s", (user_id,)).fetchone()
    assert row is not None
    return str(row[0])


def shard_of(databases: Databases, user_id: UUID) -> str:
    return databases.shard_dsns[TOPOLOGY.shard_of_user(user_id)]


@pytest.fixture
async def refresh_tokens(databases: Databases, redis_client: redis.Redis) -> AsyncIterator[RefreshTokens]:
    settings = load_settings(
        {
            **databases.environ,
            "FLASHSALE_REDIS_URL": f"redis://127.0.0.1:{redis_client.get_connection_kwargs()['port']}/0",
        }
    )
    stores = Stores.from_settings(settings)
    async with stores.opened(TaskSupervisor()):
        yield RefreshTokens(stores)


async def test_a_login_that_a_change_overtakes_gets_no_family(
    buyer: UUID, databases: Databases, refresh_tokens: RefreshTokens
) -> None:
    """The password changes after its verification: the login must fail."""
    seen = password_hash(databases, buyer)
    assert await refresh_tokens.start_family(buyer, password_hash=seen) is not None
    with psycopg.connect(shard_of(databases, buyer), autocommit=True) as connection:
        connection.execute("UPDATE users SET password_hash = 'another'")
    assert await refresh_tokens.start_family(buyer, password_hash=seen) is None


async def test_a_login_under_way_is_of_the_role_as_it_is_then(
    buyer: UUID, databases: Databases, refresh_tokens: RefreshTokens
) -> None:
    """Login and refresh wait for an uncommitted change of the role, and then carry the new role."""
    seen = password_hash(databases, buyer)
    before = await refresh_tokens.start_family(buyer, password_hash=seen)
    assert before is not None and before.role is Role.BUYER
    async with await psycopg.AsyncConnection.connect(shard_of(databases, buyer)) as change:
        await change.execute("UPDATE users SET role = 'staff' WHERE id = %s", (buyer,))
        await change.execute("INSERT INTO session_ends VALUES (%s, 1, 7777)", (buyer,))
        under_way = [
            asyncio.create_task(refresh_tokens.start_family(buyer, password_hash=seen)),
            asyncio.create_task(refresh_tokens.renew(before.refresh_token)),
        ]
        assert not (await asyncio.wait(under_way, timeout=0.3))[0]
    for login in await asyncio.gather(*under_way):
        assert login is not None and (login.role, login.claims.generation) == (Role.STAFF, 7777)


async def test_an_end_waits_until_a_login_has_said_from_when_it_is(
    buyer: UUID,
    databases: Databases,
    refresh_tokens: RefreshTokens,
    monkeypatch: pytest.MonkeyPatch,
    accounts: Accounts,
) -> None:
    """The other order: a later end has a greater generation than this login, and ends its refresh token as well."""
    seen, read, over = password_hash(databases, buyer), asyncio.Event(), asyncio.Event()
    generation_of = refresh._generation

    async def slowly(connection: psycopg.AsyncConnection[Any], user_id: UUID) -> int:
        generation = await generation_of(connection, user_id)
        read.set()
        await asyncio.sleep(0.3)
        over.set()
        return generation

    monkeypatch.setattr(refresh, "_generation", slowly)
    login = asyncio.create_task(refresh_tokens.start_family(buyer, password_hash=seen))
    await read.wait()
    await accounts.sessions.end(buyer)
    assert over.is_set()  # the end has waited for the login
    made = await login
    assert made is not None and made.role is Role.BUYER
    (generation,) = accounts.rows("SELECT generation FROM session_ends")
    assert made.claims.generation < generation
    with pytest.raises(Refused):
        await refresh_tokens.renew(made.refresh_token)


async def test_of_many_logins_the_oldest_end(
    buyer: UUID, databases: Databases, refresh_tokens: RefreshTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "FAMILIES_MAX", 3)
    seen = password_hash(databases, buyer)
    logins = [await refresh_tokens.start_family(buyer, password_hash=seen) for _ in range(5)]
    for place, login in enumerate(logins):
        assert login is not None
        with nullcontext() if place >= 2 else pytest.raises(Refused):
            await refresh_tokens.renew(login.refresh_token)


async def test_a_login_renewed_for_ever_keeps_so_many_tokens(
    buyer: UUID, databases: Databases, refresh_tokens: RefreshTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "TOKENS_KEPT", 5)
    monkeypatch.setattr(refresh, "TRIM_EVERY", 1)
    login = await refresh_tokens.start_family(buyer, password_hash=password_hash(databases, buyer))
    tokens = []
    for _ in range(12):
        assert login is not None
        tokens.append(login.refresh_token)
        login = await refresh_tokens.renew(login.refresh_token)
    with psycopg.connect(shard_of(databases, buyer), autocommit=True) as connection:
        assert connection.execute("SELECT count(*) FROM refresh_tokens").fetchone() == (5,)
        connection.execute("UPDATE refresh_tokens SET used_at = used_at - interval '1 hour'")
    assert login is not None
    with pytest.raises(Refused):  # deleted: refused, and the login goes on
        await refresh_tokens.renew(tokens[0])
    login = await refresh_tokens.renew(login.refresh_token)
    with pytest.raises(Refused, match="token_invalid"):  # known: counts as stolen, and the login ends
        await refresh_tokens.renew(tokens[-1])
    with pytest.raises(Refused):
        await refresh_tokens.renew(login.refresh_token)
