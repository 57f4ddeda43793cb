"""The first administrator: made once, only while there is none, and never with unusable settings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import pytest
import redis

from backoffice.auth.first_admin import FirstAdmin, FirstAdminError
from backoffice.auth.passwords import Passwords
from backoffice.users.administrators import Administrators
from backoffice.web.messages import Role
from devstack.servers import RedisServer
from domain.topology import Topology
from runtime.process.settings import load_settings
from tests.fixtures.fix_backoffice import ADMIN_EMAIL, ADMIN_PASSWORD, BackofficeProcess
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_users import Accounts

ENDS_S_MAX = 60


@pytest.fixture
def own(
    tmp_path: Path, redis_server: RedisServer, redis_client: redis.Redis, databases: Databases
) -> Iterator[Callable[[], BackofficeProcess]]:
    """Makes backoffices that are not started yet."""
    assert redis_client
    made: list[BackofficeProcess] = []

    def make() -> BackofficeProcess:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(BackofficeProcess(folder, redis_server.url, databases))
        return made[-1]

    yield make
    for process in made:
        process.kill()


def log_in(url: str, email: str = ADMIN_EMAIL, password: str = ADMIN_PASSWORD) -> httpx.Response:
    return httpx.post(url + "/v1/auth/login", json={"email": email, "password": password}, timeout=20)


def admins(databases: Databases) -> list[str]:
    found: list[str] = []
    for dsn in databases.shard_dsns:
        with psycopg.connect(dsn) as connection:
            found += [row[0] for row in connection.execute("SELECT email FROM users WHERE role = 'admin'")]
    return sorted(found)


def test_a_renamed_administrator_does_not_come_back(own: Callable[[], BackofficeProcess], databases: Databases) -> None:
    process = own()
    process.start()
    token = log_in(process.url).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    renamed = httpx.patch(process.url + "/v1/users/me", headers=headers, json={"email": "ops@shop.example"})
    assert renamed.status_code == 200, renamed.text
    assert process.stop() == 0
    process.start()
    assert log_in(process.url).status_code == 401
    assert log_in(process.url, "ops@shop.example").status_code == 200
    assert admins(databases) == ["ops@shop.example"]
    assert process.stop() == 0


def test_backoffices_that_start_at_once_make_one(own: Callable[[], BackofficeProcess], databases: Databases) -> None:
    """With different addresses, so that the login index does not prevent the second one."""
    processes = [own(), own()]
    for place, process in enumerate(processes):
        process.environ["FLASHSALE_ADMIN_EMAIL"] = f"admin-{place}@shop.example"
        process.start(wait=False)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(BackofficeProcess.wait_ready, processes))
    assert len(admins(databases)) == 1
    assert [process.stop() for process in processes] == [0, 0]


def test_an_address_of_a_buyer_ends_the_process(own: Callable[[], BackofficeProcess], databases: Databases) -> None:
    buyer_id, process = uuid4(), own()
    topology = Topology()
    with psycopg.connect(databases.shard_dsns[topology.shard_of_user(buyer_id)]) as connection:
        connection.execute(
            "INSERT INTO users (id, bucket, email, email_folded, name, password_hash, role) "
            "VALUES (%s, 0, %s, %s, 'Ada', '', 'buyer')",
            (buyer_id, ADMIN_EMAIL, ADMIN_EMAIL),
        )
    with psycopg.connect(databases.shard_dsns[topology.shard_of_address(ADMIN_EMAIL)]) as connection:
        connection.execute("INSERT INTO login_index VALUES (%s, %s, true)", (ADMIN_EMAIL, buyer_id))
    process.start(wait=False)
    assert process.process is not None
    assert process.process.wait(ENDS_S_MAX) == 1
    assert "FLASHSALE_ADMIN_EMAIL: a buyer or staff account has this address" in process.log
    assert "Traceback" not in process.log and admins(databases) == []


def test_unusable_settings_end_the_process_at_once(own: Callable[[], BackofficeProcess]) -> None:
    process = own()
    process.environ |= {"FLASHSALE_ADMIN_EMAIL": "", "FLASHSALE_ADMIN_PASSWORD": ""}
    process.start(wait=False)
    assert process.process is not None
    assert process.process.wait(ENDS_S_MAX) == 2
    assert "FLASHSALE_ADMIN_EMAIL: is empty" in process.log
    assert "FLASHSALE_ADMIN_PASSWORD: must have 8 to 256 characters" in process.log


@pytest.fixture
def first_admin(accounts: Accounts) -> Iterator[Callable[..., FirstAdmin]]:
    """Makes the part as each process does; keyword arguments are settings."""
    passwords = Passwords()

    def make(email: str = ADMIN_EMAIL, password: str | None = ADMIN_PASSWORD) -> FirstAdmin:
        environ = {"FLASHSALE_ADMIN_EMAIL": email}
        if password is not None:
            environ["FLASHSALE_ADMIN_PASSWORD"] = password
        administrators = Administrators(accounts.stores)
        return FirstAdmin(
            load_settings(environ), users=accounts.users, administrators=administrators, passwords=passwords
        )

    yield make
    passwords.close()


@pytest.mark.parametrize(
    ("email", "password", "named"),
    [
        ("", ADMIN_PASSWORD, "FLASHSALE_ADMIN_EMAIL"),
        ("admin", ADMIN_PASSWORD, "FLASHSALE_ADMIN_EMAIL"),
        ("admin@x.example\x00", ADMIN_PASSWORD, "FLASHSALE_ADMIN_EMAIL"),
        (ADMIN_EMAIL, "", "FLASHSALE_ADMIN_PASSWORD"),
        (ADMIN_EMAIL, "short", "FLASHSALE_ADMIN_PASSWORD"),
        (ADMIN_EMAIL, "x" * 257, "FLASHSALE_ADMIN_PASSWORD"),
        (ADMIN_EMAIL, "Passw0rd", "FLASHSALE_ADMIN_PASSWORD"),
        (ADMIN_EMAIL, ADMIN_EMAIL.upper(), "FLASHSALE_ADMIN_PASSWORD"),
    ],
)
async def test_settings_that_give_no_administrator(
    email: str, password: str, named: str, first_admin: Callable[..., FirstAdmin]
) -> None:
    with pytest.raises(FirstAdminError, match=f"^{named}: ") as error:
        first_admin(email, password)
    assert "unset FLASHSALE_ADMIN_PASSWORD if an administrator exists" in str(error.value)
    assert not password or password not in str(error.value)


async def test_one_of_many_makes_the_administrator(accounts: Accounts, first_admin: Callable[..., FirstAdmin]) -> None:
    crowd = [first_admin(f"admin-{place}@shop.example") for place in range(4)]
    await asyncio.gather(*(one.make() for one in crowd))
    assert len(accounts.rows("SELECT 1 FROM users WHERE role = 'admin' AND verified_email_folded = email_folded")) == 1
    await first_admin("", None).make()  # without a password the address does not matter


async def test_any_administrator_will_do(accounts: Accounts, first_admin: Callable[..., FirstAdmin]) -> None:
    await accounts.make("other@shop.example", role=Role.ADMIN)
    await accounts.make(ADMIN_EMAIL)  # a buyer: of no interest
    await first_admin().make()
    assert accounts.rows("SELECT email FROM users WHERE role = 'admin'") == ["other@shop.example"]


async def test_an_address_that_is_only_claimed_is_tried_again(
    accounts: Accounts, first_admin: Callable[..., FirstAdmin]
) -> None:
    """By a registration under way, or by a process that died."""
    await accounts.addresses.claim(ADMIN_EMAIL, uuid4())
    work = asyncio.create_task(first_admin().make_when_possible())
    await asyncio.sleep(0.1)
    assert not work.done() and accounts.rows("SELECT 1 FROM users") == []
    accounts.age(60)
    await work
    assert accounts.rows("SELECT email FROM users WHERE role = 'admin'") == [ADMIN_EMAIL]
