"""Sessions end at once at this backoffice and at a real edge, for every cause."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import jwt
import psycopg
import pytest
import redis

from backoffice.auth.sessions import REMEMBERED_S
from devstack.servers import RedisServer
from domain import topology
from domain.topology import Topology
from runtime.tokens.keys import LEEWAY_S, LoginClaims, load_token_keys, mint_buyer_token
from tests.fixtures.fix_backoffice import BackofficeProcess, Staff
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_edge import EdgeProcess

PASSWORD = "a long enough password"
WAIT_S_MAX = 20.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Account:
    """A registered buyer, and the services that its tokens are tried at."""

    backoffice: str
    edge: str
    email: str
    id: UUID

    def post(self, path: str, body: object = None, token: str = "") -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.post(self.backoffice + path, headers=headers, json=body)

    def log_in(self, password: str = PASSWORD) -> dict[str, str]:
        answer = self.post("/v1/auth/login", {"email": self.email, "password": password})
        assert answer.status_code == 200, answer.text
        tokens: dict[str, str] = answer.json()
        return tokens

    def statuses(self, token: str) -> tuple[int, int]:
        """The answers of backoffice and edge to the token."""
        headers = {"Authorization": f"Bearer {token}"}
        return (
            httpx.get(f"{self.backoffice}/v1/users/me", headers=headers).status_code,
            httpx.get(f"{self.edge}/v1/orders/{uuid4()}", headers=headers).status_code,
        )

    def refresh(self, tokens: dict[str, str]) -> int:
        return self.post("/v1/auth/refresh", {"refresh_token": tokens["refresh_token"]}).status_code


@pytest.fixture(scope="module")
def edge(
    backoffice_process: BackofficeProcess, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EdgeProcess]:
    """An edge with the keys and the Redis of the backoffice."""
    folder: Path = tmp_path_factory.mktemp("edge")
    settings = {"redis_url": redis_server.url, "token_keys_file": str(backoffice_process.token_keys_file)}
    process = EdgeProcess({**settings, "drain_ms": "50"}, folder / "edge.log")
    process.start()
    yield process
    process.stop()


@pytest.fixture
def account(backoffice: BackofficeProcess, edge: EdgeProcess) -> Account:
    email = f"{uuid4().hex}@example.com"
    body = {"email": email, "password": PASSWORD, "name": "A buyer"}
    answer = httpx.post(backoffice.url + "/v1/auth/register", json=body)
    assert answer.status_code == 201, answer.text
    return Account(backoffice.url, edge.url, email, UUID(answer.json()["id"]))


def test_logging_out_everywhere(account: Account) -> None:
    one, two = account.log_in(), account.log_in()
    assert account.statuses(one["access_token"]) == account.statuses(two["access_token"]) == (200, 404)
    assert account.post("/v1/auth/logout-everywhere", token=one["access_token"]).status_code == 204
    # This process rejects them at once, the edge when the message has arrived.
    assert account.statuses(two["access_token"])[0] == 401
    until(lambda: account.statuses(two["access_token"]) == (401, 401))
    assert account.statuses(one["access_token"]) == (401, 401)
    assert (account.refresh(one), account.refresh(two)) == (401, 401)
    # Tokens of a login in the same second are valid at both services at once.
    assert account.statuses(account.log_in()["access_token"]) == (200, 404)


def test_a_changed_password_ends_the_tokens_of_before(account: Account) -> None:
    before = account.log_in()
    body = {"old_password": PASSWORD, "new_password": "another long password"}
    answer = account.post("/v1/auth/password", body, token=before["access_token"])
    assert answer.status_code == 200, answer.text
    until(lambda: account.statuses(before["access_token"]) == (401, 401))
    after = answer.json()
    assert account.statuses(after["access_token"]) == (200, 404)
    assert account.refresh(before) == 401 and account.refresh(after) == 200


def ahead(process: BackofficeProcess, account: Account, generation: int) -> str:
    """A token of before an end, made by a process with a clock that is ahead by nearly the leeway."""
    now = int(time.time())
    ring, claims = load_token_keys(process.token_keys_file), LoginClaims(generation, now)
    return mint_buyer_token(
        ring, user_id=account.id, issuer="flashsale", ttl_s=900, now_s=now + LEEWAY_S - 5, login=claims
    )


def test_an_erased_account_can_do_nothing_more(account: Account, backoffice: BackofficeProcess) -> None:
    token, of_a_fast_clock = account.log_in()["access_token"], ahead(backoffice, account, 0)
    answer = httpx.delete(f"{account.backoffice}/v1/users/me", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 204, answer.text
    until(lambda: account.statuses(token) == (401, 401))
    until(lambda: account.statuses(of_a_fast_clock) == (401, 401))


def test_each_end_ends_the_tokens_of_before_also_within_one_second(
    account: Account, backoffice: BackofficeProcess
) -> None:
    """The ends and the logins between them share seconds, so `iat` cannot tell them apart."""
    ended = [ahead(backoffice, account, 0)]
    for _ in range(4):
        tokens = account.log_in()
        assert account.statuses(tokens["access_token"]) == (200, 404)
        assert account.post("/v1/auth/logout-everywhere", token=tokens["access_token"]).status_code == 204
        claims = jwt.decode(tokens["access_token"], options={"verify_signature": False})
        ended += [tokens["access_token"], ahead(backoffice, account, claims["gen"])]
        assert {account.statuses(token)[0] for token in ended} == {401}
    until(lambda: {account.statuses(token) for token in ended} == {(401, 401)})
    assert account.statuses(account.log_in()["access_token"]) == (200, 404)


def test_staff_end_sessions(account: Account, staff: Staff) -> None:
    tokens = account.log_in()
    assert staff.http.post(f"/v1/users/{account.id}/logout").status_code == 204
    until(lambda: account.statuses(tokens["access_token"]) == (401, 401))
    assert account.refresh(tokens) == 401
    assert staff.http.post("/v1/users/nonsense/logout").json()["code"] == "user_not_found"
    # A buyer without an account: synthetic, or of an outside issuer.
    assert staff.http.post(f"/v1/users/{uuid4()}/logout").status_code == 204


def test_buyers_keep_others_logged_in(account: Account) -> None:
    token = account.log_in()["access_token"]
    answer = account.post(f"/v1/users/{uuid4()}/logout", token=token)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_unpublished_ends_are_published_again(
    account: Account, databases: Databases, redis_client: redis.Redis
) -> None:
    """After a crash between commit and message, the cutoff is published again. Old cutoffs are deleted."""
    token = account.log_in()["access_token"]
    now = int(time.time())
    dsn = databases.shard_dsns[Topology().shard_of_user(account.id)]
    with psycopg.connect(dsn) as connection:
        connection.execute("INSERT INTO session_ends VALUES (%s, %s, %s)", (account.id, now, 1000 * now + 7))
    until(lambda: account.statuses(token) == (401, 401))
    assert redis_client.zscore(topology.SESSION_ENDS_KEY, account.id.bytes) == 1000 * now + 7


def test_a_backoffice_that_starts_tells_all_and_forgets_the_old(
    backoffice_process: BackofficeProcess, databases: Databases, own_redis: RedisServer, tmp_path: Path
) -> None:
    """An empty Redis, as after a loss; rows as the former release wrote them."""
    users = [uuid4() for _ in range(8)]
    old, now = uuid4(), int(time.time())
    for user, seconds in [*((user, now - 3600) for user in users), (old, now - REMEMBERED_S - 10)]:
        with psycopg.connect(databases.shard_dsns[Topology().shard_of_user(user)]) as connection:
            connection.execute("INSERT INTO session_ends VALUES (%s, %s)", (user, seconds))
    second = BackofficeProcess(tmp_path, own_redis.url, databases)
    second.start()
    try:
        with redis.Redis(port=own_redis.port) as client:
            until(lambda: client.zcard(topology.SESSION_ENDS_KEY) == len(users))
        ring = load_token_keys(second.token_keys_file)

        def status(iat: int) -> int:
            token = mint_buyer_token(ring, user_id=users[0], issuer="flashsale", ttl_s=7200, now_s=iat)
            url = f"{second.url}/v1/users/me"
            return httpx.get(url, headers={"Authorization": f"Bearer {token}"}).status_code

        until(lambda: status(now - 3600 + LEEWAY_S) == 401)
        assert status(now - 3600 + LEEWAY_S + 1) == 404
        with psycopg.connect(databases.shard_dsns[Topology().shard_of_user(old)]) as connection:
            assert connection.execute("SELECT 1 FROM session_ends WHERE user_id = %s", (old,)).fetchone() is None
    finally:
        assert second.stop() == 0
        second.kill()
    assert backoffice_process.process is not None
