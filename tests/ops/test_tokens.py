"""Tokens minted in bulk equal the tokens that `runtime.tokens.keys` mints one by one."""

from __future__ import annotations

import time
from pathlib import Path
from uuid import UUID

import jwt
import pytest

from ops.tokens import mint_many
from runtime.tokens.keys import create_token_keys, load_token_keys, mint_buyer_token


def test_bulk_token_is_what_the_slow_way_makes(tmp_path: Path) -> None:
    create_token_keys(tmp_path / "keys.json")
    keys = load_token_keys(tmp_path / "keys.json")
    ((user, token),) = mint_many(keys, count=1, issuer="flashsale", ttl_s=900)
    claims = jwt.decode(token, keys.keys[keys.active], algorithms=["HS256"], audience="edge", issuer="flashsale")
    slow = mint_buyer_token(keys, user_id=UUID(user), issuer="flashsale", ttl_s=900, now_s=claims["iat"])
    assert claims == jwt.decode(slow, keys.keys[keys.active], algorithms=["HS256"], audience="edge")
    assert jwt.get_unverified_header(token) == jwt.get_unverified_header(slow)


def test_users_are_distinct_version_7_ids_of_now(tmp_path: Path) -> None:
    create_token_keys(tmp_path / "keys.json")
    users = [
        UUID(user) for user, _ in mint_many(load_token_keys(tmp_path / "keys.json"), count=5000, issuer="x", ttl_s=1)
    ]
    assert len(set(users)) == 5000
    assert {(user.version, user.variant) for user in users} == {(7, users[0].variant)}
    assert {user.int >> 80 for user in users} <= {
        second * 1000 for second in range(int(time.time()) - 60, int(time.time()) + 1)
    }


def test_token_of_a_forged_key_is_refused(tmp_path: Path) -> None:
    for name in ("one", "other"):
        create_token_keys(tmp_path / name)
    one, other = load_token_keys(tmp_path / "one"), load_token_keys(tmp_path / "other")
    ((_, token),) = mint_many(one, count=1, issuer="flashsale", ttl_s=900)
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token, other.keys[other.active], algorithms=["HS256"], audience="edge")
