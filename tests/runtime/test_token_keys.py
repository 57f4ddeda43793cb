"""Key files: created once, private, rejected when malformed; their tokens verify only with their keys."""

from __future__ import annotations

import base64
import json
import stat
import threading
from pathlib import Path
from uuid import UUID

import jwt
import pytest

from runtime.tokens.keys import (
    TokenKeysError,
    create_staff_key,
    create_token_keys,
    load_staff_keys,
    load_token_keys,
    mint_buyer_token,
    mint_staff_token,
    staff_jwks,
)

USER = UUID("01890000-0000-7000-8000-000000000001")


def test_files_are_private_and_made_once(tmp_path: Path) -> None:
    ring, staff = tmp_path / "keys" / "ring.json", tmp_path / "keys" / "staff.pem"
    create_token_keys(ring)
    create_staff_key(staff)
    before = ring.read_bytes(), staff.read_bytes()
    create_token_keys(ring)
    create_staff_key(staff)
    assert (ring.read_bytes(), staff.read_bytes()) == before
    assert [stat.S_IMODE(path.stat().st_mode) for path in (ring, staff)] == [0o600, 0o600]
    assert sorted(path.name for path in ring.parent.iterdir()) == ["ring.json", "staff.pem"]


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    ring = tmp_path / "ring.json"
    threads = [threading.Thread(target=create_token_keys, args=(ring,)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(load_token_keys(ring).keys) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["ring.json"]


def test_buyer_token(tmp_path: Path) -> None:
    create_token_keys(tmp_path / "ring.json")
    keys = load_token_keys(tmp_path / "ring.json")
    token = mint_buyer_token(keys, user_id=USER, issuer="flashsale", ttl_s=900, now_s=1_000)
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "kid": keys.active, "typ": "JWT"}
    claims = jwt.decode(
        token, keys.keys[keys.active], algorithms=["HS256"], audience="edge", options={"verify_exp": False}
    )
    assert claims == {
        "sub": str(USER),
        "iss": "flashsale",
        "aud": "edge",
        "roles": ["buyer"],
        "iat": 1_000,
        "exp": 1_900,
    }


def test_staff_token_verifies_with_the_published_key(tmp_path: Path) -> None:
    create_staff_key(tmp_path / "staff.pem")
    key = load_staff_keys(tmp_path / "staff.pem").signing
    token = mint_staff_token(key, user_id=USER, role="admin", issuer="flashsale", ttl_s=900)
    (published,) = jwt.PyJWKSet.from_dict(staff_jwks(key)).keys
    assert published.key_id == jwt.get_unverified_header(token)["kid"] == key.kid
    claims = jwt.decode(token, published.key, algorithms=["EdDSA"], audience="backoffice")
    assert claims["roles"] == ["admin"]
    assert set(staff_jwks(key)["keys"][0]) == {"kty", "crv", "x", "kid", "alg", "use"}  # no `d`, the private part


def test_keys_are_not_shown(tmp_path: Path) -> None:
    create_token_keys(tmp_path / "ring.json")
    keys = load_token_keys(tmp_path / "ring.json")
    for secret in keys.keys.values():
        # Looks for the bytes themselves; a search for `b'` would also match a kid that ends in b.
        assert repr(secret) not in repr(keys) and secret.hex() not in repr(keys)
        assert base64.urlsafe_b64encode(secret).decode().rstrip("=") not in repr(keys)


_GOOD = base64.urlsafe_b64encode(bytes(32)).decode().rstrip("=")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"active": "a", "keys": {}}',
        json.dumps({"active": "b", "keys": {"a": _GOOD}}),
        json.dumps({"active": "a", "keys": {"a": "c2hvcnQ"}}),
        json.dumps({"active": "a", "keys": {"a": "not base64!" * 10}}),
        json.dumps({"active": "a", "keys": {"a": 7}}),
        json.dumps({"active": "a b", "keys": {"a b": _GOOD}}),
        json.dumps({"active": ["a"], "keys": {"a": _GOOD}}),
        json.dumps({"active": "0", "keys": {str(kid): _GOOD for kid in range(17)}}),
    ],
)
def test_bad_rings(tmp_path: Path, text: str) -> None:
    (tmp_path / "ring.json").write_text(text)
    with pytest.raises(TokenKeysError) as caught:
        load_token_keys(tmp_path / "ring.json")
    assert "ring.json" in str(caught.value)
    assert _GOOD not in str(caught.value)


def test_bad_staff_keys(tmp_path: Path) -> None:
    path = tmp_path / "staff.pem"
    with pytest.raises(TokenKeysError, match="No such file"):
        load_staff_keys(path)
    path.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    with pytest.raises(TokenKeysError, match="not a PEM private key"):
        load_staff_keys(path)
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    path.write_bytes(
        generate_private_key(SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(TokenKeysError, match="not an Ed25519 key"):
        load_staff_keys(path)
    with pytest.raises(TokenKeysError, match="No such file"):
        load_token_keys(tmp_path / "absent.json")
