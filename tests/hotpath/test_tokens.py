"""The compiled token check against PyJWT."""

from __future__ import annotations

import base64
import json
from typing import Any
from uuid import UUID

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpath.tokens import TOKEN_ENDED, TOKEN_EXPIRED, TOKEN_INVALID, TOKEN_MISSING, Claims, KeyRing
from tests.reference import tokens as reference

NOW_S = 1_800_000_000
KEYS = {"a": b"A" * 32, "b": b"B" * 48}
USER = UUID("12345678-9abc-4def-8123-456789abcdef")
RING = KeyRing(KEYS, issuer="flashsale")
GOOD: dict[str, Any] = {
    "sub": str(USER), "iss": "flashsale", "aud": "edge", "roles": ["buyer"], "iat": NOW_S - 10, "exp": NOW_S + 900
}  # fmt: skip


def encode(header: Any, claims: Any, key: bytes) -> bytes:
    """A token over any header and claims, properly signed."""

    def part(value: Any) -> bytes:
        raw = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    signed = part(header) + b"." + part(claims)
    return signed + b"." + part(jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(signed, key))


def mint(key_id: str = "a", *, key: bytes | None = None, header: dict[str, Any] | None = None, **claims: Any) -> bytes:
    """A valid token except for the given claims; a claim of Ellipsis is left out."""
    merged = {name: value for name, value in (GOOD | claims).items() if value is not ...}
    return encode({"alg": "HS256", "typ": "JWT", "kid": key_id} | (header or {}), merged, key or KEYS[key_id])


def check(token: bytes) -> Any:
    """The verdict of both implementations, which must agree."""
    found = RING.verify(token, NOW_S)
    plain = (
        (found.user_id, found.expires_at_s)
        if isinstance(found, Claims)
        else {TOKEN_INVALID: "invalid", TOKEN_EXPIRED: "expired"}[found]
    )
    wanted = reference.verify(token, KEYS, issuer="flashsale", audience="edge", role="buyer", now_s=NOW_S)
    assert plain == wanted
    return plain


def test_good_token_of_each_key_and_spelling() -> None:
    good = (USER.bytes, NOW_S + 900)
    for _ in range(2):  # the second time the header is known
        assert check(mint("a")) == check(mint("b")) == good
        assert check(mint(aud=["other", "edge"], roles=["x", "buyer"], jti="1", name="Å")) == good
        assert check(mint(sub=str(USER).upper())) == good
        assert check(mint(nbf=NOW_S)) == good
        assert (
            check(mint(gen=0, auth_time=NOW_S)) == check(mint(gen=NOW_S * 1000)) == check(mint(auth_time="x")) == good
        )


@pytest.mark.parametrize(
    "token",
    [
        mint(header={"alg": "none"}),
        mint(header={"alg": "HS512"}),
        mint(header={"crit": ["x"], "x": 1}),
        mint(header={"kid": "unknown"}),
        mint(header={"kid": 7}),
        mint("b", key=KEYS["a"]),
        mint(iss="other"),
        mint(aud="backoffice"),
        mint(aud=["x"]),
        mint(aud=7),
        mint(roles=["staff"]),
        mint(roles="buyer"),
        mint(roles=[]),
        mint(sub="me"),
        mint(sub=str(USER).replace("-", "")),
        mint(sub=7),
        mint(iat=NOW_S + 61),
        mint(nbf=NOW_S + 61),
        mint(nbf="soon"),
        mint(exp="later"),
        mint(exp=True),
        *(mint(gen=value) for value in (-1, "1", None, True, 1.5, 2**62)),
        *(mint(**{name: ...}) for name in GOOD),
        encode({"alg": "HS256", "kid": "a"}, b"[]", KEYS["a"]),
        encode({"alg": "HS256", "kid": "a"}, b"{", KEYS["a"]),
        encode(b"7", GOOD, KEYS["a"]),
        mint() + b"=",
        mint()[:-1],
        mint() + b".x",
        mint().replace(b".", b"", 1),
        b"..",
        b"",
        b"\xff.\xff.\xff",
        mint(name="x" * 4096),
    ],
)
def test_refused(token: bytes) -> None:
    assert check(token) == "invalid"


def test_times_at_their_bounds() -> None:
    assert check(mint(exp=NOW_S)) == "expired"
    assert check(mint(exp=NOW_S + 1)) == (USER.bytes, NOW_S + 1)
    assert check(mint(exp=NOW_S - 1000, iat=NOW_S - 2000)) == "expired"
    assert check(mint(exp=-1)) == "expired"
    assert check(mint(iat=NOW_S + 60, nbf=NOW_S + 60)) == (USER.bytes, NOW_S + 900)
    assert check(mint(exp=NOW_S - 1, aud="other")) == "invalid"


@settings(max_examples=400, deadline=None)
@given(at=st.integers(0, 400), byte=st.integers(0, 255))
def test_no_byte_may_change(at: int, byte: int) -> None:
    token = bytearray(mint())
    at %= len(token)
    changed = token[at] != byte
    token[at] = byte
    assert (check(bytes(token)) == "invalid") is changed


@settings(max_examples=300, deadline=None)
@given(
    claims=st.fixed_dictionaries(
        {},
        optional={
            "sub": st.sampled_from([str(USER), str(USER)[:-1], "", 1, None]),
            "iss": st.sampled_from(["flashsale", "flash", None, ["flashsale"]]),
            "aud": st.sampled_from(["edge", ["edge"], [], "", None, ["edge", 1]]),
            "roles": st.sampled_from([["buyer"], ["buyer", 1], [["buyer"]], {"buyer": 1}, None]),
            "iat": st.integers(NOW_S - 100, NOW_S + 100) | st.sampled_from([None, 1.5, 2**70]),
            "exp": st.integers(NOW_S - 100, NOW_S + 100) | st.sampled_from([None, "1", 2**70, 0]),
            "nbf": st.integers(NOW_S - 100, NOW_S + 100) | st.sampled_from([None, False]),
            "gen": st.integers(-1, 2**63) | st.sampled_from([None, False]),
            "auth_time": st.integers(0, 2**63) | st.sampled_from([None, -1, "x"]),
        },
    )
)
def test_agrees_on_odd_claims(claims: dict[str, Any]) -> None:
    check(mint(**claims))


@pytest.mark.parametrize("header", [None, "", "Basic abc", "Bearer", mint().decode()])
def test_missing(header: str | None) -> None:
    assert RING.authorize(header, NOW_S) == TOKEN_MISSING


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
def test_authorization_header(scheme: str) -> None:
    claims = RING.authorize(scheme + mint().decode(), NOW_S)
    assert isinstance(claims, Claims)
    assert (claims.issued_at_s, claims.generation_of_sessions) == (NOW_S - 10, -1)


def test_short_keys_are_a_mistake() -> None:
    with pytest.raises(AssertionError):
        KeyRing({"a": b"short"}, issuer="flashsale")


@pytest.mark.parametrize("user", [USER.bytes, b""])
def test_tokens_without_a_generation_end_by_their_time(user: bytes) -> None:
    """With the leeway: a clock ahead by it may have written `iat`. The note for all users counts for every token."""
    table: dict[bytes, int] = {}
    ring = KeyRing(KEYS, issuer="flashsale", ends=table)
    iat = NOW_S - 10
    tokens = [mint()] if user else [mint(), mint(gen=0), mint(gen=1 << 61)]
    for token in tokens:
        assert isinstance(ring.verify(token, NOW_S), Claims)
        for end_ms, ended in (
            (1000 * (iat - 60) - 1, False),
            (1000 * (iat - 60), True),
            (1000 * iat, True),
            (1 << 61, True),
        ):
            table[user] = end_ms
            assert (ring.verify(token, NOW_S) == TOKEN_ENDED) == ended, end_ms
        table[bytes(16)] = 1 << 62  # of another user
        del table[user]
        assert isinstance(ring.verify(token, NOW_S), Claims)


def test_tokens_end_by_their_generation_whatever_their_time() -> None:
    end = NOW_S * 1000
    ring = KeyRing(KEYS, issuer="flashsale", ends={USER.bytes: end})
    for iat in (NOW_S - 10, NOW_S, NOW_S + 60):
        for spelling in ({}, {"jti": "x"}):  # read by the plain reader, and by the general one
            assert ring.verify(mint(gen=0, iat=iat, **spelling), NOW_S) == TOKEN_ENDED
            assert ring.verify(mint(gen=end - 1, iat=iat, **spelling), NOW_S) == TOKEN_ENDED
            assert isinstance(ring.verify(mint(gen=end, iat=iat, **spelling), NOW_S), Claims)
            assert isinstance(ring.verify(mint(gen=end + 1, iat=iat, **spelling), NOW_S), Claims)
    # Forged and expired are reported first, so that only holders of a valid token learn of an end.
    assert ring.verify(mint(key=b"x" * 32), NOW_S) == TOKEN_INVALID
    assert ring.verify(mint(exp=NOW_S - 1), NOW_S) == TOKEN_EXPIRED


def test_keys_are_replaced_while_the_ring_is_used() -> None:
    ring = KeyRing({"a": KEYS["a"]}, issuer="flashsale")
    assert isinstance(ring.verify(mint("a"), NOW_S), Claims)
    assert ring.verify(mint("b"), NOW_S) == TOKEN_INVALID
    ring.replace(KEYS)
    assert isinstance(ring.verify(mint("a"), NOW_S), Claims) and isinstance(ring.verify(mint("b"), NOW_S), Claims)
    ring.replace({"b": KEYS["b"]})
    # Also for the header that is cached.
    assert ring.verify(mint("a"), NOW_S) == TOKEN_INVALID
    ring.replace({"a": KEYS["b"]})
    assert ring.verify(mint("a"), NOW_S) == TOKEN_INVALID
    assert isinstance(ring.verify(mint("a", key=KEYS["b"]), NOW_S), Claims)
