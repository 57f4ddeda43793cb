"""Register, log in, refresh, log out; limits; answers that must not reveal accounts."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any
from uuid import UUID

import httpx
import jwt
import psycopg
import pytest
import redis

from backoffice.auth.refresh import UNUSED_MAX
from backoffice.auth.weak_passwords import is_weak
from backoffice.limits.attempts import LOGIN_ACCOUNT_FROM_CLIENT, REGISTER_CLIENT, Attempts, Limit
from backoffice.web.messages import Refused
from domain.problems import RatePolicy
from domain.topology import Topology
from runtime.redis.client import redis_client as new_client
from tests.fixtures.fix_backoffice import BackofficeProcess
from tests.fixtures.fix_databases import Databases

PASSWORD = "correct horse battery"


@pytest.fixture
def http(backoffice: BackofficeProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=backoffice.url, timeout=20) as client:
        yield client


def register(http: httpx.Client, email: str = "buyer@shop.example", **members: Any) -> httpx.Response:
    return http.post("/v1/auth/register", json={"email": email, "password": PASSWORD, "name": "Ada", **members})


def login(http: httpx.Client, email: str = "buyer@shop.example", password: str = PASSWORD) -> httpx.Response:
    return http.post("/v1/auth/login", json={"email": email, "password": password})


def test_register_and_log_in(http: httpx.Client, backoffice: BackofficeProcess, databases: Databases) -> None:
    made = register(http, "Buyer@Shop.example")
    assert made.status_code == 201
    user = made.json()
    assert set(user) == {"id", "email", "name", "role", "created_at", "email_verified"}
    assert (user["email"], user["name"], user["role"]) == ("Buyer@Shop.example", "Ada", "buyer")
    assert user["email_verified"] is False
    tokens = login(http, "buyer@SHOP.example").json()
    assert (tokens["token_type"], tokens["expires_in"]) == ("Bearer", 900)
    claims = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    assert (claims["aud"], claims["roles"], claims["sub"]) == ("edge", ["buyer"], user["id"])
    me = http.get("/v1/users/me", headers={"Authorization": f"Bearer {tokens['access_token']}"})
    assert me.json() == user
    # The account is in the shard of its bucket, with an argon2id hash. The password is not in the log.
    dsn = databases.shard_dsns[Topology().shard_of_user(UUID(user["id"]))]
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT password_hash FROM users WHERE id = %s", (user["id"],)).fetchone()
    assert row is not None
    assert row[0].startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert PASSWORD not in backoffice.log
    assert tokens["refresh_token"] not in backoffice.log


def test_an_address_is_used_once_in_any_case(http: httpx.Client, databases: Databases) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: register(http, f"Race{'R' * (n % 2)}@shop.example".upper()), range(8)))
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [201, 201, 409, 409, 409, 409, 409, 409]
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"email_taken"}
    assert _count(databases, "users") == _count(databases, "login_index") == 2


def _count(databases: Databases, table: str) -> int:
    total = 0
    for dsn in databases.shard_dsns:
        with psycopg.connect(dsn) as connection:
            row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
            assert row is not None
            total += row[0]
    return total


@pytest.mark.parametrize(
    "email",
    [
        "",
        "a",
        "a@b",
        "@b.example",
        "a@",
        "a b@c.example",
        "a@b..example",
        "a@-b.example",
        "a@b.example\r\nBcc: x@y.example",
        "a@b.example\x00",
        "\u0430@b.example",  # Cyrillic
        "a@b\u0131.example",
        "a@b.exampl\uff45",
        '"a b"@c.example',
        "a@[127.0.0.1]",
        "a" * 65 + "@b.example",
        "a@" + "b" * 250 + ".example",
    ],
)
def test_addresses_that_are_not_taken(http: httpx.Client, email: str) -> None:
    answer = register(http, email)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert answer.json()["errors"][0]["pointer"] == "/email"
    assert login(http, email).status_code in (401, 422)


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"password": "short"}, "/password"),
        ({"password": "x" * 257}, "/password"),
        ({"password": 12345678}, "/password"),
        ({"password": None}, "/password"),
        ({"name": ""}, "/name"),
        ({"name": "  "}, "/name"),
        ({"name": "a\nb"}, "/name"),
        ({"name": "a\x00"}, "/name"),
        ({"name": "\x1b[2J"}, "/name"),
        ({"role": "admin"}, "/role"),
        ({"is_admin": True}, "/is_admin"),
    ],
)
def test_registrations_that_are_not_valid(http: httpx.Client, members: dict[str, Any], pointer: str) -> None:
    answer = register(http, **members)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert "short" not in answer.text or "password" in pointer


def test_login_tells_nothing(http: httpx.Client) -> None:
    register(http)
    wrong, unknown = login(http, password="wrong"), login(http, "nobody@shop.example")
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.json() == unknown.json()
    assert wrong.json()["code"] == "credentials_invalid"
    own = {"date": "", "x-request-id": ""}
    assert {**wrong.headers, **own} == {**unknown.headers, **own}
    assert wrong.headers["www-authenticate"] == 'Bearer realm="flashsale"'
    for odd in ("\x00", "'; DROP TABLE users; --@x.example", "\U0001f600@x.example", "a" * 254):
        assert login(http, odd).json() == wrong.json()


def test_password_is_compared_whole(http: httpx.Client) -> None:
    register(http, password="p\u00e4ssw\u00f6rd \U0001f600" + "x" * 200)
    assert login(http, password="p\u00e4ssw\u00f6rd \U0001f600" + "x" * 200).status_code == 200
    assert login(http, password="p\u00e4ssw\u00f6rd \U0001f600" + "x" * 199).status_code == 401


def test_guessing_is_limited(http: httpx.Client) -> None:
    register(http)
    register(http, "other@shop.example")
    for _ in range(LOGIN_ACCOUNT_FROM_CLIENT.attempts_max):
        assert login(http, password="guess").status_code == 401
    # The right password is refused, too: otherwise the limit would reveal it. The case of the address does not matter.
    for email in ("buyer@shop.example", "BUYER@shop.example"):
        limited = login(http, email)
        assert (limited.status_code, limited.json()["code"]) == (429, "rate_limited")
        wait_s = int(limited.headers["retry-after"])
        assert 1 <= wait_s <= LOGIN_ACCOUNT_FROM_CLIENT.window_s
        assert limited.headers["ratelimit"] == f'"login-pair";r=0;t={wait_s}'
        assert limited.headers["ratelimit-policy"] == '"login-pair";q=10;w=900'
    assert login(http, "other@shop.example").status_code == 200
    for _ in range(LOGIN_ACCOUNT_FROM_CLIENT.attempts_max):
        login(http, "nobody@shop.example")
    assert login(http, "nobody@shop.example").status_code == 429


def test_the_right_password_begins_anew(http: httpx.Client) -> None:
    register(http)
    for _ in range(2):
        for _ in range(LOGIN_ACCOUNT_FROM_CLIENT.attempts_max - 1):
            assert login(http, password="typo").status_code == 401
        assert login(http).status_code == 200


def test_guessing_in_parallel_counts_every_guess(http: httpx.Client) -> None:
    register(http)
    with ThreadPoolExecutor(20) as pool:
        codes = [answer.status_code for answer in pool.map(lambda _: login(http, password="guess"), range(20))]
    assert codes.count(401) == LOGIN_ACCOUNT_FROM_CLIENT.attempts_max
    assert codes.count(429) == 20 - LOGIN_ACCOUNT_FROM_CLIENT.attempts_max


def test_registering_is_limited(http: httpx.Client, redis_client: redis.Redis) -> None:
    register(http)
    with redis.Redis(port=redis_client.get_connection_kwargs()["port"], db=1) as cache:
        (key,) = [key for key in cache.scan_iter() if b"register" in key]
        assert 0 < cache.ttl(key) <= REGISTER_CLIENT.window_s
        cache.incrby(key, REGISTER_CLIENT.attempts_max)
    answer = register(http, "b@shop.example")
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")


async def test_a_refused_attempt_counts_nowhere(redis_client: redis.Redis) -> None:
    """Attempts refused to one client leave the attempts of other clients; the answer names the longest wait."""
    pair, account, client = Limit("pair", 3, 60), Limit("account", 5, 900), Limit("client", 8, 30)
    url = f"redis://127.0.0.1:{redis_client.get_connection_kwargs()['port']}/1"

    def subjects(who: str, email: str = "a") -> tuple[tuple[Limit, str], ...]:
        return (pair, f"{email} {who}"), (account, email), (client, who)

    async with new_client(url) as cache:
        attempts = Attempts(cache)
        for tries in range(20):
            with nullcontext() if tries < 3 else pytest.raises(Refused):
                await attempts.spend(*subjects("one"))
        for tries in range(6):  # the limit of the account
            with nullcontext() if tries < 2 else pytest.raises(Refused) as refused:
                await attempts.spend(*subjects("other"))
        assert refused.value.details.policy == RatePolicy("account", 5, 900)
        assert 890 <= (refused.value.details.retry_after_s or 0) <= 900
        for email in "bcdef":  # the limit of the client: it has used three of eight
            await attempts.spend(*subjects("one", email))
        with pytest.raises(Refused) as refused:
            await attempts.spend(*subjects("one", "g"))
        assert refused.value.details.policy == RatePolicy("client", 8, 30)
        await attempts.spend(*subjects("other", "g"))


async def test_a_limit_holds_to_the_end_of_its_window(redis_client: redis.Redis) -> None:
    limit, url = Limit("test", 1, 900), f"redis://127.0.0.1:{redis_client.get_connection_kwargs()['port']}/1"
    async with new_client(url) as cache:
        attempts = Attempts(cache)
        await attempts.spend((limit, "x"))
        (key,) = [key async for key in cache.scan_iter(match="*:test:*")]
        await cache.pexpire(key, 450)  # Redis would round this to 0 s
        with pytest.raises(Refused) as refused:
            await attempts.spend((limit, "x"))
    assert refused.value.details.retry_after_s == 1


def test_more_hashes_than_may_wait_are_refused(http: httpx.Client) -> None:
    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(lambda n: login(http, f"user-{n}@shop.example"), range(60)))
    codes = {answer.status_code for answer in answers}
    assert codes <= {401, 503}
    for answer in answers:
        assert answer.json()["code"] in ("credentials_invalid", "overloaded")


def refresh(http: httpx.Client, token: str) -> httpx.Response:
    return http.post("/v1/auth/refresh", json={"refresh_token": token})


def age_use(databases: Databases) -> None:
    for dsn in databases.shard_dsns:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("UPDATE refresh_tokens SET used_at = used_at - interval '11 seconds'")


def test_refresh_tokens_rotate(http: httpx.Client, databases: Databases) -> None:
    register(http)
    first = login(http).json()["refresh_token"]
    second = refresh(http, first)
    assert second.status_code == 200
    assert set(second.json()) == {"access_token", "refresh_token", "token_type", "expires_in"}
    # After a lost reply: the same token again within ten seconds.
    again = refresh(http, first)
    assert again.status_code == 200
    tokens = {first, second.json()["refresh_token"], again.json()["refresh_token"]}
    assert len(tokens) == 3
    assert refresh(http, again.json()["refresh_token"]).status_code == 200
    # Later the token counts as stolen, and the whole family ends.
    age_use(databases)
    stolen = refresh(http, first)
    assert (stolen.status_code, stolen.json()["code"]) == (401, "token_invalid")
    assert refresh(http, second.json()["refresh_token"]).status_code == 401
    assert login(http).status_code == 200


def test_refresh_of_many_at_once(http: httpx.Client) -> None:
    register(http)
    token = login(http).json()["refresh_token"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: refresh(http, token), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["refresh_token"] for answer in answers}) == 8


def test_a_token_that_may_be_used_again_does_not_fill_the_table(http: httpx.Client, databases: Databases) -> None:
    register(http)
    token = login(http).json()["refresh_token"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: refresh(http, token), range(UNUSED_MAX + 8)))
    renewed = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert (len(renewed), len(refused)) == (UNUSED_MAX, 8)
    assert {(answer.json()["code"], answer.headers["retry-after"]) for answer in refused} == {("rate_limited", "10")}
    assert _count(databases, "refresh_tokens") == UNUSED_MAX + 1
    # The login goes on: each of the new tokens is valid at once.
    assert refresh(http, renewed[0].json()["refresh_token"]).status_code == 200


def test_a_login_renewed_one_after_another_is_not_limited(http: httpx.Client) -> None:
    register(http)
    answer = login(http)
    for _ in range(2 * UNUSED_MAX):
        token = answer.json()["refresh_token"]
        answer = refresh(http, token)
        assert answer.status_code == 200
    # The last token may still be used again, as after a lost reply.
    assert refresh(http, token).status_code == 200


def test_logout_ends_the_family(http: httpx.Client) -> None:
    register(http)
    token, other = login(http).json()["refresh_token"], login(http).json()["refresh_token"]
    renewed = refresh(http, token).json()["refresh_token"]
    for _ in range(2):
        assert http.post("/v1/auth/logout", json={"refresh_token": token}).status_code == 204
    assert refresh(http, renewed).status_code == 401
    assert refresh(http, other).status_code == 200


def test_a_family_ends_by_time(http: httpx.Client, databases: Databases) -> None:
    register(http)
    token = login(http).json()["refresh_token"]
    for dsn in databases.shard_dsns:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("UPDATE refresh_families SET expires_at = now()")
    answer = refresh(http, token)
    assert (answer.status_code, answer.json()["code"]) == (401, "token_expired")
    login(http)
    assert _count(databases, "refresh_families") == 1  # the login deleted the expired family


def test_refresh_tokens_that_are_none(http: httpx.Client) -> None:
    register(http)
    tokens = login(http).json()
    good = tokens["refresh_token"]
    bad = ["x", good[:-4] + "AAAA", "A" * len(good), good + "AAAA", good[:-1], tokens["access_token"], "\u00e9" * 86]
    for token in bad:
        answer = refresh(http, token)
        assert (answer.status_code, answer.json()["code"]) in ((401, "token_invalid"), (422, "validation_failed")), (
            token
        )
        assert http.post("/v1/auth/logout", json={"refresh_token": token}).status_code in (204, 422)
    assert refresh(http, good).status_code == 200
    for body in ({}, {"refresh_token": None}, {"refresh_token": 1}, {"refresh_token": good, "x": 1}, [], "x"):
        assert http.post("/v1/auth/refresh", json=body).status_code == 422


def test_jwks(http: httpx.Client) -> None:
    answer = http.get("/.well-known/jwks.json")
    assert answer.headers["content-type"] == "application/jwk-set+json"
    (key,) = answer.json()["keys"]
    assert (key["kty"], key["crv"], key["alg"]) == ("OKP", "Ed25519", "EdDSA")
    assert "d" not in key


@pytest.mark.parametrize(
    "password", ["password", "Passw0rd", "12345678", "qwertyuiop", "aaaaaaaa", "buyer@shop.example", "Ada Lovelace"]
)
def test_passwords_that_are_easy_to_guess_are_refused(http: httpx.Client, password: str) -> None:
    answer = register(http, password=password, name="Ada Lovelace")
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert answer.json()["errors"] == [
        {"pointer": "/password", "detail": "is too easy to guess; choose a longer or less common password"}
    ]


def test_long_passwords_cost_bounded_time_to_judge() -> None:
    """These take zxcvbn about a second: almost each character may stand for a letter."""
    hard = ("@$01!3457+({[<|" * 20)[:256]
    assert not is_weak(hard)
    assert is_weak("a" * 256)


def test_a_refresh_does_not_make_a_login_recent(http: httpx.Client, databases: Databases) -> None:
    """A stolen login cannot take the account over: that needs the password again."""
    register(http)
    tokens = login(http).json()
    for dsn in databases.shard_dsns:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("UPDATE refresh_families SET created_at = created_at - interval '11 minutes'")
    headers = {"Authorization": f"Bearer {refresh(http, tokens['refresh_token']).json()['access_token']}"}
    for answer in (
        http.patch("/v1/users/me", json={"email": "thief@x.example"}, headers=headers),
        http.delete("/v1/users/me", headers=headers),
    ):
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["reason"]) == (403, "forbidden", "recent_login_required")
        assert problem["max_age_s"] == 600 and "log in again" in problem["detail"]
    assert http.patch("/v1/users/me", json={"name": "Countess"}, headers=headers).status_code == 200
    headers = {"Authorization": f"Bearer {login(http).json()['access_token']}"}
    moved = http.patch("/v1/users/me", json={"email": "ada@other.example"}, headers=headers)
    assert (moved.status_code, moved.json()["email_verified"]) == (200, False)
