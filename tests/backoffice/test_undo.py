"""The undo of a changed address, by the token that was mailed to the old one: what it restores, ends and voids."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import httpx
import psycopg
import pytest

from domain.notices import NoticeKind
from tests.backoffice.test_auth import PASSWORD, login, refresh, register
from tests.backoffice.test_recovery import (
    EMAIL,
    NEW,
    TOPOLOGY,
    code,
    forget_notices,
    is_verified,
    mailed,
    me,
    notices,
    reset,
)
from tests.fixtures.fix_backoffice import BackofficeProcess
from tests.fixtures.fix_databases import Databases

THIEF = "thief@x.example"


@pytest.fixture
def http(backoffice: BackofficeProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=backoffice.url, timeout=20) as client:
        yield client


@pytest.fixture
def buyer(http: httpx.Client) -> UUID:
    """The id of an account."""
    return UUID(register(http).json()["id"])


def move(http: httpx.Client, email: str, to: str) -> str:
    """Change the address; the access token."""
    token: str = login(http, email).json()["access_token"]
    answer = http.patch("/v1/users/me", json={"email": to}, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    return token


def undo_token(databases: Databases, user_id: UUID, email: str, *, life: str = "7 days") -> str:
    """A token as in the letter to an address that the account has left."""
    token = mailed(databases, user_id, NoticeKind.EMAIL_CHANGED, life=life)
    with psycopg.connect(databases.shard_dsns[TOPOLOGY.shard_of_user(user_id)], autocommit=True) as connection:
        connection.execute(
            "UPDATE mailed_links SET email_folded = %s WHERE notice_id = "
            "(SELECT notice_id FROM mailed_links WHERE user_id = %s ORDER BY notice_id DESC LIMIT 1)",
            (email, user_id),
        )
    return token


def undo(http: httpx.Client, token: str) -> httpx.Response:
    return http.post("/v1/auth/undo-email-change", json={"token": token})


def test_the_old_mailbox_gets_the_account_back(http: httpx.Client, buyer: UUID, databases: Databases) -> None:
    access = move(http, EMAIL, THIEF)
    tokens = login(http, THIEF).json()
    token = undo_token(databases, buyer, EMAIL)
    forget_notices(databases)
    assert undo(http, token).status_code == 204
    # The thief has nothing: not the address, no session, and not the password.
    assert login(http, THIEF).status_code == 401
    assert code(me(http, access)) == code(me(http, tokens["access_token"])) == (401, "token_invalid")
    assert refresh(http, tokens["refresh_token"]).status_code == 401
    assert login(http).status_code == 401
    # The address of the thief gets no letter; the owner gets one to set a password.
    assert notices(databases) == [(TOPOLOGY.shard_of_user(buyer), "password_reset", EMAIL)]
    assert is_verified(databases, buyer)
    assert reset(http, mailed(databases, buyer, NoticeKind.PASSWORD_RESET)).status_code == 204
    assert login(http, password=NEW).status_code == 200
    assert code(undo(http, token)) == (401, "token_invalid")
    # The other address is free again.
    assert register(http, THIEF).status_code == 201


def test_the_first_of_several_changes_is_undone_for_good(http: httpx.Client, buyer: UUID, databases: Databases) -> None:
    """A thief can change the address twice, and then has a link as well. The link of the owner voids it."""
    move(http, EMAIL, THIEF)
    of_the_owner = undo_token(databases, buyer, EMAIL)
    move(http, THIEF, "second-thief@x.example")
    of_the_thief = undo_token(databases, buyer, THIEF)
    assert undo(http, of_the_owner).status_code == 204
    assert code(undo(http, of_the_thief)) == (401, "token_invalid")
    assert reset(http, mailed(databases, buyer, NoticeKind.PASSWORD_RESET)).status_code == 204
    assert login(http, password=NEW).status_code == 200


def test_a_link_of_the_thief_does_not_outlive_the_owner(http: httpx.Client, buyer: UUID, databases: Databases) -> None:
    """A reset that was mailed to the address of the thief, and one that was requested before."""
    move(http, EMAIL, THIEF)
    tokens = [mailed(databases, buyer, NoticeKind.PASSWORD_RESET)]
    assert undo(http, undo_token(databases, buyer, EMAIL)).status_code == 204
    for token in tokens:
        assert code(reset(http, token)) == (401, "token_invalid")


def test_an_address_that_another_account_has_now(http: httpx.Client, buyer: UUID, databases: Databases) -> None:
    """The token stays good: the reader of the mailbox can take that account over, and then use the token."""
    move(http, EMAIL, THIEF)
    token = undo_token(databases, buyer, EMAIL)
    blocker = UUID(register(http).json()["id"])
    refused = undo(http, token)
    assert code(refused) == (409, "email_taken") and "Reset its password" in refused.json()["detail"]
    assert login(http, THIEF).status_code == 200
    assert reset(http, mailed(databases, blocker, NoticeKind.PASSWORD_RESET)).status_code == 204
    headers = {"Authorization": f"Bearer {login(http, password=NEW).json()['access_token']}"}
    assert http.delete("/v1/users/me", headers=headers).status_code == 204
    assert undo(http, token).status_code == 204
    assert login(http, THIEF).status_code == 401


def test_tokens_that_undo_nothing(http: httpx.Client, buyer: UUID, databases: Databases) -> None:
    move(http, EMAIL, THIEF)
    expired = undo_token(databases, buyer, EMAIL, life="-1 second")
    assert code(undo(http, expired)) == (401, "token_expired")
    for token in ("x", mailed(databases, buyer, NoticeKind.PASSWORD_RESET), expired[:-4] + "AAAA"):
        assert code(undo(http, token)) == (401, "token_invalid")
    good = undo_token(databases, buyer, EMAIL)
    token = login(http, THIEF, PASSWORD).json()["access_token"]
    assert http.delete("/v1/users/me", headers={"Authorization": f"Bearer {token}"}).status_code == 204
    assert code(undo(http, good)) == (401, "token_invalid")


def test_an_address_that_the_account_has_again(http: httpx.Client, buyer: UUID, databases: Databases) -> None:
    move(http, EMAIL, THIEF)
    token = undo_token(databases, buyer, EMAIL)
    move(http, THIEF, EMAIL)
    assert undo(http, token).status_code == 204
    assert login(http).status_code == 401
    assert reset(http, mailed(databases, buyer, NoticeKind.PASSWORD_RESET)).status_code == 204
    assert login(http, password=NEW).status_code == 200
