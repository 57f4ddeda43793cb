"""Strangers can use up the limits of an account without locking its owner out. The limits stay bounds."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import httpx
import pytest
import redis

from backoffice.limits.attempts import LOGIN_ACCOUNT, LOGIN_ACCOUNT_FROM_CLIENT, MAIL_ADDRESS, MAIL_ADDRESS_FROM_CLIENT
from backoffice.limits.known_clients import CLIENTS_MAX, KNOWN_S, KnownClients
from domain.notices import NoticeKind
from runtime.redis.client import redis_client as new_client
from tests.backoffice.test_auth import PASSWORD, register
from tests.backoffice.test_recovery import EMAIL, NEW, mailed, reset
from tests.fixtures.fix_backoffice import BackofficeProcess
from tests.fixtures.fix_databases import Databases

OWNER, OTHER_PLACE, STRANGER = "198.51.100.1", "198.51.100.2", "203.0.113.1"


@pytest.fixture(scope="module")
def behind_proxy(
    backoffice_process: BackofficeProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BackofficeProcess]:
    """A backoffice that reads the address of a client from X-Forwarded-For."""
    process = BackofficeProcess(
        tmp_path_factory.mktemp("proxied"),
        backoffice_process.redis_url,
        backoffice_process.databases,
        {"FLASHSALE_TRUSTED_PROXIES": "127.0.0.0/8"},
    )
    process.start()
    yield process
    try:
        assert process.stop() == 0
    finally:
        process.kill()


@pytest.fixture
def cache(redis_client: redis.Redis) -> Iterator[redis.Redis]:
    with redis.Redis(port=redis_client.get_connection_kwargs()["port"], db=1) as client:
        yield client


class Clients:
    """Requests from many addresses."""

    def __init__(self, http: httpx.Client, cache: redis.Redis) -> None:
        self.http = http
        self._cache = cache

    def post(self, client: str, path: str, **body: str) -> int:
        headers = {"X-Forwarded-For": client}
        return self.http.post(f"/v1/auth/{path}", json=body, headers=headers).status_code

    def log_in(self, client: str, password: str = PASSWORD, email: str = EMAIL) -> int:
        return self.post(client, "login", email=email, password=password)

    def use_up(self, kind: str, attempts_max: int) -> None:
        """As attempts from many more addresses do."""
        (key,) = self._cache.scan_iter(f"flashsale:attempts:{kind}:*")
        self._cache.incrby(key, attempts_max)


@pytest.fixture
def clients(behind_proxy: BackofficeProcess, databases: Databases, cache: redis.Redis) -> Iterator[Clients]:
    assert databases
    with httpx.Client(base_url=behind_proxy.url, timeout=20) as http:
        yield Clients(http, cache)


@pytest.fixture
def buyer(clients: Clients) -> UUID:
    return UUID(register(clients.http).json()["id"])


def test_guesses_of_strangers_do_not_lock_out_a_client_that_has_logged_in(clients: Clients, buyer: UUID) -> None:
    assert clients.log_in(OWNER) == 200 and buyer
    assert clients.log_in(STRANGER, "guess") == 401
    clients.use_up(LOGIN_ACCOUNT.kind, LOGIN_ACCOUNT.attempts_max)
    assert clients.log_in(STRANGER) == clients.log_in(OTHER_PLACE) == 429
    for _ in range(3):
        assert clients.log_in(OWNER) == 200
    # A known client has the limit of a client: also its guesses are bounded.
    for _ in range(LOGIN_ACCOUNT_FROM_CLIENT.attempts_max):
        assert clients.log_in(OWNER, "guess") == 401
    assert clients.log_in(OWNER) == 429
    # It is known for this account only.
    assert clients.log_in(OWNER, email="other@shop.example") == 401


def test_a_proven_reset_lets_the_owner_in(clients: Clients, buyer: UUID, databases: Databases) -> None:
    """Where the owner is, although no login ever came from there."""
    assert clients.log_in(STRANGER, "guess") == 401
    clients.use_up(LOGIN_ACCOUNT.kind, LOGIN_ACCOUNT.attempts_max)
    for _ in range(LOGIN_ACCOUNT_FROM_CLIENT.attempts_max):
        clients.log_in(OWNER, "forgotten")
    assert clients.log_in(OWNER) == 429
    token = mailed(databases, buyer, NoticeKind.PASSWORD_RESET)
    answer = clients.http.post(
        "/v1/auth/password-reset", json={"token": token, "new_password": NEW}, headers={"X-Forwarded-For": OWNER}
    )
    assert answer.status_code == 204
    assert clients.log_in(OTHER_PLACE, NEW) == 200  # the strangers begin anew
    assert clients.log_in(STRANGER, "guess") == 401
    clients.use_up(LOGIN_ACCOUNT.kind, LOGIN_ACCOUNT.attempts_max)
    assert clients.log_in(OWNER, NEW) == clients.log_in(OTHER_PLACE, NEW) == 200


def test_a_reset_forgets_the_clients_of_before(clients: Clients, buyer: UUID, databases: Databases) -> None:
    """A thief may have logged in."""
    assert clients.log_in(STRANGER) == 200
    assert reset(clients.http, mailed(databases, buyer, NoticeKind.PASSWORD_RESET)).status_code == 204
    assert clients.log_in(OTHER_PLACE, "guess") == 401
    clients.use_up(LOGIN_ACCOUNT.kind, LOGIN_ACCOUNT.attempts_max)
    assert clients.log_in(STRANGER, NEW) == 429


def test_requests_of_strangers_take_neither_link_nor_request_from_the_owner(
    clients: Clients, buyer: UUID, databases: Databases
) -> None:
    assert clients.log_in(OWNER) == 200
    token = mailed(databases, buyer, NoticeKind.PASSWORD_RESET)
    assert clients.post(STRANGER, "password-reset", email=EMAIL) == 204
    mailed(databases, buyer, NoticeKind.PASSWORD_RESET)  # the letter for it
    clients.use_up(MAIL_ADDRESS.kind, MAIL_ADDRESS.attempts_max)
    assert clients.post(OTHER_PLACE, "password-reset", email=EMAIL) == 429
    for _ in range(MAIL_ADDRESS_FROM_CLIENT.attempts_max):
        assert clients.post(OWNER, "password-reset", email=EMAIL) == 204
    assert clients.post(OWNER, "password-reset", email=EMAIL) == 429
    assert reset(clients.http, token).status_code == 204


def test_an_erased_account_leaves_no_known_clients(clients: Clients, buyer: UUID, cache: redis.Redis) -> None:
    answer = clients.http.post("/v1/auth/login", json={"email": EMAIL, "password": PASSWORD})
    assert len(list(cache.scan_iter("flashsale:known-clients:*"))) == 1 and buyer
    headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    assert clients.http.delete("/v1/users/me", headers=headers).status_code == 204
    assert list(cache.scan_iter("flashsale:known-clients:*")) == []


async def test_known_clients_are_bounded_in_number_and_time(cache: redis.Redis) -> None:
    url = f"redis://127.0.0.1:{cache.get_connection_kwargs()['port']}/1"
    async with new_client(url) as client:
        known = KnownClients(client)
        assert not await known.knows("a@b.example", OWNER)
        await known.remember("a@b.example", OWNER)
        (key,) = cache.scan_iter("flashsale:known-clients:*")
        assert 0 < cache.ttl(key) <= KNOWN_S
        cache.zadd(key, dict.fromkeys(cache.zrange(key, 0, -1), 1))  # long ago
        assert not await known.knows("a@b.example", OWNER)
        for place in range(CLIENTS_MAX):
            await known.remember("a@b.example", f"client {place}")
        assert cache.zcard(key) == CLIENTS_MAX
        assert all([await known.knows("a@b.example", f"client {place}") for place in range(CLIENTS_MAX)])
        assert b"client" not in b"".join(cache.zrange(key, 0, -1)) and b"a@b" not in key
