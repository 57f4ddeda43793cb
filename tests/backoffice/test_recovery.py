"""Change and reset a password, verify an address: permissions, single use, ended logins, non-revealing answers."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import argon2
import httpx
import psycopg
import pytest
import redis

from backoffice.auth.passwords import MEMORY_KIB, TIME_COST
from backoffice.limits.attempts import CHANGE_ACCOUNT, LOGIN_ACCOUNT_FROM_CLIENT, MAIL_ADDRESS_FROM_CLIENT
from domain import ids
from domain.mailed_tokens import SECRET_BYTES, encode_mailed_token, secret_hash
from domain.notices import NoticeKind, parse_notice
from domain.topology import DESTINATION_NOTICES, Topology, outbox_partition
from runtime.tokens.keys import load_token_keys, mint_buyer_token
from tests.backoffice.test_auth import PASSWORD, login, refresh, register
from tests.fixtures.fix_backoffice import BackofficeProcess
from tests.fixtures.fix_databases import Databases

EMAIL = "buyer@shop.example"
NEW = "another long password"
TOPOLOGY = Topology()


@pytest.fixture
def http(backoffice: BackofficeProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=backoffice.url, timeout=20) as client:
        yield client


@pytest.fixture
def buyer(http: httpx.Client) -> UUID:
    """The id of an account."""
    made = register(http)
    assert made.status_code == 201, made.text
    return UUID(made.json()["id"])


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def change(http: httpx.Client, access_token: str, old: str = PASSWORD, new: str = NEW) -> httpx.Response:
    headers = {"Authorization": f"Bearer {access_token}"}
    return http.post("/v1/auth/password", json={"old_password": old, "new_password": new}, headers=headers)


def me(http: httpx.Client, access_token: str) -> httpx.Response:
    return http.get("/v1/users/me", headers={"Authorization": f"Bearer {access_token}"})


def ask(http: httpx.Client, what: str, email: str = EMAIL) -> httpx.Response:
    return http.post(f"/v1/auth/{what}", json={"email": email})


def reset(http: httpx.Client, token: str, new: str = NEW) -> httpx.Response:
    return http.post("/v1/auth/password-reset", json={"token": token, "new_password": new})


def verify(http: httpx.Client, token: str) -> httpx.Response:
    return http.post("/v1/auth/verify-email", json={"token": token})


def mailed(databases: Databases, user_id: UUID, kind: NoticeKind, *, life: str = "30 minutes") -> str:
    """A token as in the letter for a notice."""
    secret = secrets.token_bytes(SECRET_BYTES)
    with psycopg.connect(databases.shard_dsns[TOPOLOGY.shard_of_user(user_id)], autocommit=True) as connection:
        connection.execute(
            "INSERT INTO mailed_links (user_id, purpose, notice_id, secret_hash, email_folded, expires_at) "
            "SELECT id, %s, %s, %s, email_folded, now() + %s::interval FROM users WHERE id = %s",
            (kind.value, ids.new_uuid7(), secret_hash(secret), life, user_id),
        )
    return encode_mailed_token(user_id, secret)


def of_user(databases: Databases, user_id: UUID, expression: str) -> Any:
    with psycopg.connect(databases.shard_dsns[TOPOLOGY.shard_of_user(user_id)]) as connection:
        row = connection.execute(f"SELECT {expression} FROM users WHERE id = %s", (user_id,)).fetchone()
    assert row is not None
    return row[0]


def is_verified(databases: Databases, user_id: UUID) -> bool:
    return bool(of_user(databases, user_id, "coalesce(verified_email_folded = email_folded, false)"))


def notices(databases: Databases) -> list[tuple[int, str, str]]:
    """Shard, kind and key of every notice in an outbox."""
    found = []
    for shard, dsn in enumerate(databases.shard_dsns):
        with psycopg.connect(dsn) as connection:
            rows = connection.execute(
                "SELECT partition, events FROM outbox WHERE destination = %s ORDER BY id", (DESTINATION_NOTICES,)
            ).fetchall()
        for partition, (event,) in rows:
            notice = parse_notice(json.dumps(event).encode())
            assert partition == outbox_partition(notice.key)
            found.append((shard, notice.kind.value, notice.key))
    return found


def forget_notices(databases: Databases) -> None:
    for dsn in databases.shard_dsns:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("DELETE FROM outbox")


def test_a_registration_leaves_the_notice_that_asks_for_the_address(buyer: UUID, databases: Databases) -> None:
    assert notices(databases) == [(TOPOLOGY.shard_of_user(buyer), "verify_email", str(buyer))]


def test_a_taken_address_gets_no_second_notice(http: httpx.Client, buyer: UUID, databases: Databases) -> None:
    assert register(http).status_code == 409
    assert len(notices(databases)) == 1 and buyer


def test_a_changed_password_ends_every_other_login(http: httpx.Client, buyer: UUID, databases: Databases) -> None:
    one, other = login(http).json(), login(http).json()
    reset_token = mailed(databases, buyer, NoticeKind.PASSWORD_RESET)
    forget_notices(databases)
    changed = change(http, one["access_token"])
    assert changed.status_code == 200, changed.text
    assert set(changed.json()) == {"access_token", "refresh_token", "token_type", "expires_in"}
    for tokens in (one, other):
        assert code(refresh(http, tokens["refresh_token"])) == (401, "token_invalid")
    assert refresh(http, changed.json()["refresh_token"]).status_code == 200
    assert me(http, changed.json()["access_token"]).json()["id"] == str(buyer)
    # Access tokens end, too, including those of the present second.
    for tokens in (one, other):
        assert code(me(http, tokens["access_token"])) == (401, "token_invalid")
    assert login(http).status_code == 401
    assert login(http, password=NEW).status_code == 200
    # The owner gets a notice, and a reset that was requested before is void.
    assert notices(databases) == [(TOPOLOGY.shard_of_user(buyer), "password_changed", str(buyer))]
    assert code(reset(http, reset_token)) == (401, "token_invalid")


def test_a_change_needs_the_old_password(http: httpx.Client, buyer: UUID, databases: Databases) -> None:
    tokens = login(http).json()
    assert code(change(http, tokens["access_token"], old="wrong password")) == (401, "credentials_invalid")
    for weak in ("short", "Passw0rd", EMAIL):
        answer = change(http, tokens["access_token"], new=weak)
        assert code(answer) == (422, "validation_failed") and answer.json()["errors"][0]["pointer"] == "/new_password"
    assert refresh(http, tokens["refresh_token"]).status_code == 200
    assert len(notices(databases)) == 1 and buyer
    assert login(http).status_code == 200


def test_guessing_the_old_password_is_limited(http: httpx.Client, buyer: UUID) -> None:
    tokens = login(http).json()
    for _ in range(CHANGE_ACCOUNT.attempts_max):
        assert change(http, tokens["access_token"], old="guess").status_code == 401
    limited = change(http, tokens["access_token"])
    assert code(limited) == (429, "rate_limited") and buyer
    assert 1 <= int(limited.headers["retry-after"]) <= CHANGE_ACCOUNT.window_s


def test_of_several_changes_at_once_one_wins(http: httpx.Client, buyer: UUID) -> None:
    token = login(http).json()["access_token"]
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda n: change(http, token, new=f"new password {n}"), range(5)))
    won = [place for place, answer in enumerate(answers) if answer.status_code == 200]
    assert len(won) == 1 and buyer
    assert {answer.status_code for answer in answers} == {200, 401}
    works = [n for n in range(5) if login(http, password=f"new password {n}").status_code == 200]
    assert works == won


def test_a_caller_without_an_account_has_no_password(http: httpx.Client, backoffice: BackofficeProcess) -> None:
    keys = load_token_keys(backoffice.token_keys_file)
    token = mint_buyer_token(keys, user_id=uuid4(), issuer="flashsale", ttl_s=900)
    assert code(change(http, token)) == (404, "user_not_found")


@pytest.mark.parametrize("what", ["password-reset", "verify-email"])
def test_asking_for_a_mail_tells_nothing(what: str, http: httpx.Client, buyer: UUID, databases: Databases) -> None:
    """The same answer and the same work for every address: one row that names the address."""
    forget_notices(databases)
    known, unknown = ask(http, what, EMAIL.upper()), ask(http, what, "nobody@shop.example")
    assert known.status_code == unknown.status_code == 204 and buyer
    assert known.content == unknown.content == b""
    own = {"date": "", "x-request-id": ""}
    assert {**known.headers, **own} == {**unknown.headers, **own}
    kind = "password_reset" if what == "password-reset" else "verify_email"
    assert sorted(notices(databases)) == sorted(
        (TOPOLOGY.shard_of_address(address), kind, address) for address in (EMAIL, "nobody@shop.example")
    )


@pytest.mark.parametrize("email", [EMAIL, "nobody@shop.example"])
def test_mails_to_one_address_are_limited_whether_it_exists(email: str, http: httpx.Client, buyer: UUID) -> None:
    for _ in range(MAIL_ADDRESS_FROM_CLIENT.attempts_max):
        assert ask(http, "password-reset", email).status_code == 204
    limited = ask(http, "password-reset", email.upper())
    assert code(limited) == (429, "rate_limited") and buyer
    assert 1 <= int(limited.headers["retry-after"]) <= MAIL_ADDRESS_FROM_CLIENT.window_s
    assert ask(http, "verify-email", email).status_code == 204  # the other purpose has its own limit


def test_a_mailed_token_resets_the_password_once(http: httpx.Client, buyer: UUID, databases: Databases) -> None:
    tokens = login(http).json()
    forget_notices(databases)
    token = mailed(databases, buyer, NoticeKind.PASSWORD_RESET)
    assert not is_verified(databases, buyer)
    assert reset(http, token).status_code == 204
    assert login(http).status_code == 401
    assert login(http, password=NEW).status_code == 200
    assert code(refresh(http, tokens["refresh_token"])) == (401, "token_invalid")
    assert code(me(http, tokens["access_token"])) == (401, "token_invalid")
    assert me(http, login(http, password=NEW).json()["access_token"]).status_code == 200
    assert notices(databases) == [(TOPOLOGY.shard_of_user(buyer), "password_changed", str(buyer))]
    assert is_verified(databases, buyer)  # the token was mailed to this address
    assert me(http, login(http, password=NEW).json()["access_token"]).json()["email_verified"] is True
    assert code(reset(http, token, "a third password")) == (401, "token_invalid")
    assert login(http, password=NEW).status_code == 200


def test_of_several_resets_at_once_one_wins(http: httpx.Client, buyer: UUID, databases: Databases) -> None:
    token = mailed(databases, buyer, NoticeKind.PASSWORD_RESET)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda n: reset(http, token, f"new password {n}"), range(6)))
    won = [place for place, answer in enumerate(answers) if answer.status_code == 204]
    assert len(won) == 1
    assert {answer.status_code for answer in answers} == {204, 401}
    assert [n for n in range(6) if login(http, password=f"new password {n}").status_code == 200] == won


def test_reset_and_change_at_once_leave_one_password(http: httpx.Client, buyer: UUID, databases: Databases) -> None:
    """Both lock the account, its token and its logins in the same order; otherwise they would deadlock."""
    for _ in range(4):
        access = login(http).json()["access_token"]
        token = mailed(databases, buyer, NoticeKind.PASSWORD_RESET)
        with ThreadPoolExecutor(2) as pool:
            changed = pool.submit(change, http, access, PASSWORD, "by the change")
            by_token = pool.submit(reset, http, token, "by the token")
        codes = (changed.result().status_code, by_token.result().status_code)
        assert codes in ((200, 401), (401, 204)), codes
        good = [word for word in ("by the change", "by the token") if login(http, password=word).status_code == 200]
        assert len(good) == 1
        assert reset(http, mailed(databases, buyer, NoticeKind.PASSWORD_RESET), PASSWORD).status_code == 204


def test_a_reset_resets_the_limit_of_guesses(http: httpx.Client, buyer: UUID, databases: Databases) -> None:
    for _ in range(LOGIN_ACCOUNT_FROM_CLIENT.attempts_max + 1):
        login(http, password="guess")
    assert login(http).status_code == 429
    assert reset(http, mailed(databases, buyer, NoticeKind.PASSWORD_RESET)).status_code == 204
    assert login(http, password=NEW).status_code == 200


@pytest.mark.parametrize("place", [0, 1, 2])
def test_any_of_several_links_resets_once_and_voids_the_others(
    place: int, http: httpx.Client, buyer: UUID, databases: Databases
) -> None:
    """A request by a stranger does not void the link of the owner."""
    tokens = [mailed(databases, buyer, NoticeKind.PASSWORD_RESET) for _ in range(3)]
    assert reset(http, tokens[place]).status_code == 204
    assert login(http, password=NEW).status_code == 200
    for token in tokens:
        assert code(reset(http, token, "a third password")) == (401, "token_invalid")


def test_of_several_links_used_at_once_one_wins(http: httpx.Client, buyer: UUID, databases: Databases) -> None:
    tokens = [mailed(databases, buyer, NoticeKind.PASSWORD_RESET) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: reset(http, tokens[n], f"new password {n}"), range(4)))
    won = [place for place, answer in enumerate(answers) if answer.status_code == 204]
    assert [n for n in range(4) if login(http, password=f"new password {n}").status_code == 200] == won
    assert len(won) == 1


def test_a_mailed_token_verifies_the_address_once(http: httpx.Client, buyer: UUID, databases: Databases) -> None:
    token = mailed(databases, buyer, NoticeKind.VERIFY_EMAIL)
    access = login(http).json()["access_token"]
    before = me(http, access)
    assert before.json()["email_verified"] is False
    assert verify(http, token).status_code == 204
    assert is_verified(databases, buyer)
    # Not from a cache, and with another version.
    after = me(http, access)
    assert after.json() == {**before.json(), "email_verified": True}
    assert after.headers["etag"] != before.headers["etag"]
    assert code(verify(http, token)) == (401, "token_invalid")


def test_a_token_proves_the_address_it_was_mailed_to(http: httpx.Client, buyer: UUID, databases: Databases) -> None:
    tokens = {kind: mailed(databases, buyer, kind) for kind in (NoticeKind.VERIFY_EMAIL, NoticeKind.PASSWORD_RESET)}
    with psycopg.connect(databases.shard_dsns[TOPOLOGY.shard_of_user(buyer)], autocommit=True) as connection:
        connection.execute("UPDATE users SET email = 'new@x.example', email_folded = 'new@x.example'")
    assert code(verify(http, tokens[NoticeKind.VERIFY_EMAIL])) == (401, "token_invalid")
    assert code(reset(http, tokens[NoticeKind.PASSWORD_RESET])) == (401, "token_invalid")
    assert not is_verified(databases, buyer)


def test_tokens_that_are_none(http: httpx.Client, buyer: UUID, databases: Databases) -> None:
    verification = mailed(databases, buyer, NoticeKind.VERIFY_EMAIL)
    good = mailed(databases, buyer, NoticeKind.PASSWORD_RESET)
    refresh_token = login(http).json()["refresh_token"]
    stranger = encode_mailed_token(uuid4(), secrets.token_bytes(SECRET_BYTES))
    wrong = encode_mailed_token(buyer, secrets.token_bytes(SECRET_BYTES))
    for token in ("x", good[:-1], good + "A", stranger, wrong, verification, refresh_token, "\u00e9" * 64, "=" * 64):
        assert code(reset(http, token)) == (401, "token_invalid"), token
    assert code(reset(http, mailed(databases, buyer, NoticeKind.PASSWORD_RESET, life="-1 second"))) == (
        401,
        "token_expired",
    )
    assert code(verify(http, mailed(databases, buyer, NoticeKind.VERIFY_EMAIL, life="-1 second"))) == (
        401,
        "token_expired",
    )
    assert login(http).status_code == 200
    assert not is_verified(databases, buyer)


@pytest.mark.parametrize(
    ("what", "body", "pointer"),
    [
        ("password-reset", {}, "/email"),
        ("password-reset", {"email": "nobody"}, "/email"),
        ("password-reset", {"email": 1}, "/email"),
        ("password-reset", {"email": EMAIL, "token": "x"}, "/token"),
        ("password-reset", {"token": "x"}, "/new_password"),
        ("password-reset", {"token": "x", "new_password": "short"}, "/new_password"),
        ("password-reset", {"token": "", "new_password": NEW}, "/token"),
        ("password-reset", {"token": "x" * 1000, "new_password": NEW}, "/token"),
        ("password-reset", {"new_password": NEW}, "/token"),
        ("password-reset", [], ""),
        ("password-reset", "x", ""),
        ("verify-email", {}, "/email"),
        ("verify-email", {"email": "a@b.example\r\nBcc: x@y.example"}, "/email"),
        ("verify-email", {"email": "\u0430@b.example"}, "/email"),
        ("verify-email", {"token": "x", "email": None}, "/email"),
        ("verify-email", {"token": 7}, "/token"),
        ("verify-email", {"token": "x", "new_password": NEW}, "/new_password"),
    ],
)
def test_bodies_that_are_not_valid(http: httpx.Client, what: str, body: object, pointer: str) -> None:
    answer = http.post(f"/v1/auth/{what}", json=body)
    assert code(answer) == (422, "validation_failed"), answer.text
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]
    assert not any(
        "Request" in error["pointer"] or "Confirmation" in error["pointer"] for error in answer.json()["errors"]
    )


def test_a_refused_new_password_does_not_use_the_token_up(
    http: httpx.Client, buyer: UUID, databases: Databases
) -> None:
    token = mailed(databases, buyer, NoticeKind.PASSWORD_RESET)
    assert reset(http, token, "short").status_code == 422
    for guessed in ("Passw0rd", EMAIL):
        weak = reset(http, token, guessed)
        assert code(weak) == (422, "validation_failed") and weak.json()["errors"][0]["pointer"] == "/new_password"
    assert reset(http, token).status_code == 204


def test_both_forms_are_described(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    for what, names in (
        ("password-reset", {"ResetRequest", "ResetConfirmation"}),
        ("verify-email", {"VerificationRequest", "VerificationConfirmation"}),
    ):
        operation = document["paths"][f"/v1/auth/{what}"]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        form = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
        assert {choice["$ref"].rsplit("/", 1)[1] for choice in form["anyOf"]} == names
        assert names <= set(document["components"]["schemas"])


def test_a_hash_of_older_parameters_is_made_anew_at_the_login(
    http: httpx.Client, buyer: UUID, databases: Databases
) -> None:
    weak = argon2.PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
    with psycopg.connect(databases.shard_dsns[TOPOLOGY.shard_of_user(buyer)], autocommit=True) as connection:
        connection.execute("UPDATE users SET password_hash = %s", (weak,))
    assert login(http, password="wrong").status_code == 401
    assert of_user(databases, buyer, "password_hash") == weak
    with ThreadPoolExecutor(4) as pool:
        assert {answer.status_code for answer in pool.map(lambda _: login(http), range(4))} == {200}
    renewed = of_user(databases, buyer, "password_hash")
    assert f"m={MEMORY_KIB},t={TIME_COST},p=1" in renewed
    assert login(http).status_code == 200
    assert of_user(databases, buyer, "password_hash") == renewed


def test_where_it_is_asked_for_only_the_verified_log_in(
    tmp_path: Path, redis_client: redis.Redis, databases: Databases
) -> None:
    port = redis_client.get_connection_kwargs()["port"]
    process = BackofficeProcess(
        tmp_path, f"redis://127.0.0.1:{port}/0", databases, {"FLASHSALE_LOGIN_VERIFIED_ONLY": "true"}
    )
    process.start()
    try:
        with httpx.Client(base_url=process.url, timeout=20) as http:
            buyer = UUID(register(http).json()["id"])
            assert code(login(http)) == (403, "forbidden")
            assert code(login(http, password="wrong")) == (401, "credentials_invalid")
            assert verify(http, mailed(databases, buyer, NoticeKind.VERIFY_EMAIL)).status_code == 204
            assert login(http).status_code == 200
            # The first administrator needs no verification.
            assert login(http, "admin@flashsale.example", "an administrator's password").status_code == 200
        assert process.stop() == 0
    finally:
        process.kill()
