"""Tokens of an outside issuer with a real JWKS server: accepted, rejected, and while the server is away."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from redis.asyncio import Redis

from runtime.process import tasks
from runtime.process.settings import SettingsError, load_settings
from runtime.tokens import jwks
from runtime.tokens.jwks import KEYS_MAX, Jwks, JwksUnusable
from runtime.tokens.keys import LEEWAY_S
from runtime.tokens.outside_issuers import OutsideIssuer
from runtime.tokens.outside_tokens import Fault, OutsideTokens, OutsideUser, derived_user_id
from runtime.tokens.session_ends import SessionEnds
from tests.fixtures.fix_issuer import AUD, ISS, Issuer, public_jwk

USER = derived_user_id(ISS, "user|42")


def configured(issuer: Issuer, **members: Any) -> OutsideIssuer:
    return OutsideIssuer.model_validate({**json.loads(issuer.setting())[0], **members})


async def loaded(issuer: Issuer, *, remembered_max: int = 100, **members: Any) -> OutsideTokens:
    """Verifies after one fetch."""
    tokens = OutsideTokens([configured(issuer, **members)], SessionEnds(Redis()), remembered_max=remembered_max)
    await fetch(tokens)
    return tokens


async def fetch(tokens: OutsideTokens) -> None:
    for _, keys in tokens._issuers.values():
        await keys.refresh()


def verify(tokens: OutsideTokens, token: str) -> OutsideUser | Fault:
    """The second verification comes from the cache."""
    now = int(time.time())
    first, second = tokens.verify(token, now), tokens.verify(token, now)
    assert first == second
    return first


async def test_good_tokens_of_each_kind(issuer: Issuer) -> None:
    tokens = await loaded(issuer)
    for kid in ("ed", "ec", "rsa"):
        found = verify(tokens, issuer.token(kid))
        assert isinstance(found, OutsideUser)
        assert found.user_id == USER and (found.is_buyer, found.is_staff, found.is_admin) == (True, False, False)
    assert tokens.verified == 3, "once per token"
    assert isinstance(verify(tokens, issuer.token(aud=["another", AUD])), OutsideUser)
    assert isinstance(verify(tokens, issuer.token(iat=time.time() - 1.5)), OutsideUser)


def _segment(document: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


async def test_tokens_that_are_not_believed(issuer: Issuer, rsa_key: rsa.RSAPrivateKey) -> None:
    tokens = await loaded(issuer)
    good = issuer.token("rsa")
    head, body, signature = good.split(".")
    public = rsa_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    x = public_jwk("ed", issuer.keys["ed"])["x"]
    claims = jwt.decode(good, options={"verify_signature": False})
    now = int(time.time())

    def hs256(secret: bytes, kid: str) -> str:
        signed = f"{_segment({'alg': 'HS256', 'kid': kid})}.{body}"
        mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(signed.encode(), secret)
        return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"

    bad = {
        "alg none": f"{_segment({'alg': 'none', 'kid': 'rsa'})}.{body}.",
        "alg none, signed": f"{_segment({'alg': 'none', 'kid': 'rsa'})}.{body}.{signature}",
        "HS256 with the public key": hs256(public, "rsa"),
        "HS256 with the JWK's x": hs256(x.encode(), "ed"),
        "another algorithm of the key": issuer.token("rsa", alg="RS512"),
        "PS256": issuer.token("rsa", alg="PS256"),
        "a key under another's name": issuer.token("ec", key=issuer.keys["ed"]),
        "a stranger's key": issuer.token("ed", key=ed25519.Ed25519PrivateKey.generate()),
        "changed claims": f"{head}.{_segment({**claims, 'sub': 'admin'})}.{signature}",
        "no signature": f"{head}.{body}.",
        "four parts": good + ".x",
        "another issuer": issuer.token(iss="https://evil.example.com/"),
        "another audience": issuer.token(aud="another-shop"),
        "no audience": issuer.token(aud=...),
        "no subject": issuer.token(sub=...),
        "empty subject": issuer.token(sub=""),
        "long subject": issuer.token(sub="x" * 256),
        "no end": issuer.token(exp=...),
        "no beginning": issuer.token(iat=...),
        "an end in words": issuer.token(exp="soon", key=issuer.keys["ed"]),
        "true as a time": issuer.token(iat=True),
        "too long a life": issuer.token(iat=now, exp=now + 3601),
        "from the future": issuer.token(iat=now + 600, exp=now + 900),
        "not valid yet": issuer.token(nbf=now + 600),
        "no kid": jwt.encode(claims, issuer.keys["ed"], "EdDSA"),
        "critical extension": jwt.encode(claims, issuer.keys["ed"], "EdDSA", {"kid": "ed", "crit": ["x"], "x": 1}),
        "own key in the header": jwt.encode(
            claims, ed25519.Ed25519PrivateKey.generate(), "EdDSA", {"kid": "ed", "jwk": {"kty": "OKP", "x": x}}
        ),
        "rubbish": "abc", "dots": "..", "not base64": "%.%.%", "huge": "a." * 4000, "not ASCII": "caf\u00e9.a.b",
        "deep": f"{base64.urlsafe_b64encode(b'[' * 2000).decode()}.{body}.{signature}",
    }  # fmt: skip
    for name, token in bad.items():
        assert verify(tokens, token) is Fault.INVALID, name
    assert isinstance(verify(tokens, good), OutsideUser)
    assert verify(tokens, issuer.token(iat=now - 700, exp=now - 1)) is Fault.EXPIRED


async def test_only_configured_algorithms(issuer: Issuer) -> None:
    tokens = await loaded(issuer, algorithms=["ES256"])
    assert isinstance(verify(tokens, issuer.token("ec")), OutsideUser)
    assert verify(tokens, issuer.token("rsa")) is Fault.INVALID and verify(tokens, issuer.token("ed")) is Fault.INVALID


async def test_changing_conditions_are_checked_each_time(issuer: Issuer) -> None:
    ends = SessionEnds(Redis())
    tokens = OutsideTokens([configured(issuer)], ends)
    await fetch(tokens)
    now = int(time.time())
    token = issuer.token(iat=now - 5, exp=now + 60)
    assert isinstance(tokens.verify(token, now), OutsideUser)
    ends.take(USER.bytes, 1000 * now)
    # The clock of the issuer may be ahead by the leeway: only later tokens are surely of after the end.
    assert tokens.verify(token, now) is tokens.verify(issuer.token(iat=now + LEEWAY_S), now) is Fault.ENDED
    assert isinstance(tokens.verify(issuer.token(iat=now + LEEWAY_S + 1), now + 1), OutsideUser)
    ends.table.clear()
    assert tokens.verify(token, now + 60) is Fault.EXPIRED
    # A key that is no longer published.
    token = issuer.token("ec")
    assert isinstance(tokens.verify(token, now), OutsideUser)
    verified = tokens.verified
    await fetch(tokens)
    assert isinstance(tokens.verify(token, now), OutsideUser) and tokens.verified == verified, "the same key"
    del issuer.keys["ec"]
    await fetch(tokens)
    assert not isinstance(tokens.verify(token, now), OutsideUser)
    # Another key under the same kid.
    issuer.keys["ec"] = ec.generate_private_key(ec.SECP256R1())
    await fetch(tokens)
    assert tokens.verify(token, now) is Fault.INVALID


async def test_memory_is_bounded(issuer: Issuer) -> None:
    tokens = await loaded(issuer, remembered_max=8)
    many = [issuer.token(jti=str(place)) for place in range(20)]
    for token in many:
        assert isinstance(tokens.verify(token, int(time.time())), OutsideUser)
        assert len(tokens._remembered) <= 8
    # An evicted token is verified again; a forged token evicts none.
    assert tokens.verified == 20
    for place in range(50):
        tokens.verify(issuer.token(key=ed25519.Ed25519PrivateKey.generate(), jti=str(place)), int(time.time()))
    assert isinstance(tokens.verify(many[-1], int(time.time())), OutsideUser) and tokens.verified == 20
    assert isinstance(tokens.verify(many[0], int(time.time())), OutsideUser) and tokens.verified == 21


async def test_users_and_roles(issuer: Issuer) -> None:
    def seen(tokens: OutsideTokens, **claims: Any) -> tuple[bool, bool, bool] | Fault:
        found = verify(tokens, issuer.token(**claims))
        return (found.is_buyer, found.is_staff, found.is_admin) if isinstance(found, OutsideUser) else found

    tokens = await loaded(issuer)
    assert seen(tokens, roles=["admin", "staff"]) == (True, False, False), "nobody is staff unless it is configured"
    tokens = await loaded(issuer, buyer_roles=["customer"], staff_roles=["ops"], admin_roles=["root"])
    assert seen(tokens, roles=["customer"]) == (True, False, False)
    assert seen(tokens, roles=["ops", 7]) == (False, True, False)
    assert seen(tokens, roles="root customer") == (True, False, True)
    assert seen(tokens) == (False, False, False) == seen(tokens, roles={"customer": 1})
    tokens = await loaded(issuer, roles_claim="realm_access.roles", buyer_roles=["customer"])
    assert seen(tokens, realm_access={"roles": ["customer"]}) == (True, False, False)
    assert seen(tokens, realm_access=["customer"]) == (False, False, False)
    tokens = await loaded(issuer, roles_claim="https://example.com/roles", buyer_roles=["customer"])
    assert seen(tokens, **{"https://example.com/roles": ["customer"]}) == (True, False, False)
    # A `sub` with the id of one of our users gives another id.
    own = uuid4()
    found = verify(await loaded(issuer), issuer.token(sub=str(own)))
    assert isinstance(found, OutsideUser) and found.user_id == derived_user_id(ISS, str(own)) != own
    tokens = await loaded(issuer, subjects="uuid")
    found = verify(tokens, issuer.token(sub=str(own)))
    assert isinstance(found, OutsideUser) and found.user_id == own
    assert verify(tokens, issuer.token(sub="user|42")) is Fault.INVALID
    # Must never change: accounts depend on it.
    assert derived_user_id(ISS, "user|42") == UUID("2ff34b67-678c-57b3-9a39-d01702c67285")
    assert derived_user_id("https://other.example.com/", "user|42") != USER


async def test_only_usable_keys_are_taken(issuer: Issuer, rsa_key: rsa.RSAPrivateKey) -> None:
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - the key must be rejected
    ed = issuer.keys["ed"]
    issuer.extra = [
        public_jwk("short", short), public_jwk("enc", rsa_key, use="enc"), public_jwk("other", rsa_key, alg="RS512"),
        public_jwk("p384", ec.generate_private_key(ec.SECP384R1())), public_jwk("ops", ed, key_ops=["sign"]),
        public_jwk("", ed), {**public_jwk("x", ed), "kid": 7}, {"kty": "oct", "kid": "oct", "k": "AAAA"},
        {**public_jwk("broken", ed), "x": "AA"}, {"kid": "none"}, "text", None, public_jwk("ed", rsa_key),
        public_jwk("good", ed, alg="EdDSA", key_ops=["verify"]),
    ]  # fmt: skip
    keys = Jwks(configured(issuer))
    await keys.refresh()
    assert set(keys.keys) == {"ed", "ec", "rsa", "good"} and not keys.failing
    assert keys.keys["ed"].algorithm == "EdDSA", "the first one of a name counts"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"keys": {}}', b"[" * 50_000, json.dumps({"keys": [{}] * (KEYS_MAX + 1)})]
)
def test_answers_that_are_not_a_key_set(issuer: Issuer, content: bytes) -> None:
    with pytest.raises(JwksUnusable):
        jwks.parse(content, configured(issuer))


async def test_an_issuer_that_is_away_or_answers_badly(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known keys stay in use; a token with an unknown key is unavailable, not invalid."""
    monkeypatch.setattr(jwks, "FETCH_S_MAX", 0.5)
    tokens = OutsideTokens([configured(issuer)], SessionEnds(Redis()))
    token, now = issuer.token(), int(time.time())
    assert tokens.verify(token, now) is Fault.UNAVAILABLE
    ((_, keys),) = tokens._issuers.values()

    async def fails(**changes: Any) -> None:
        before = {name: getattr(issuer, name) for name in changes}
        for name, value in changes.items():
            setattr(issuer, name, value)
        await keys.refresh()
        assert keys.failing
        for name, value in before.items():
            setattr(issuer, name, value)

    await fails(status=503)
    assert tokens.verify(token, now) is Fault.UNAVAILABLE
    await keys.refresh()
    assert isinstance(tokens.verify(token, now), OutsideUser) and not keys.failing
    await fails(status=500)
    await fails(status=302, headers={"Location": issuer.url})
    await fails(body=b"<html>")
    await fails(body=b" " * (jwks.DOCUMENT_BYTES_MAX + 1))
    await fails(headers={"Content-Length": "100000"})
    await fails(pause_s=2.0)
    url = issuer.url
    issuer.stop()
    await fails()
    assert isinstance(tokens.verify(token, now), OutsideUser)
    assert isinstance(tokens.verify(issuer.token(jti="new"), now), OutsideUser)
    assert tokens.verify(issuer.token("next", key=issuer.keys["ed"]), now) is Fault.UNAVAILABLE
    issuer.start(int(url.rpartition(":")[2].partition("/")[0]))
    await keys.refresh()
    assert not keys.failing


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.01)


async def test_a_new_key_is_fetched_and_a_flood_of_unknown_ones_is_not(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "COOLDOWN_S", 0.5)
    tokens = OutsideTokens([configured(issuer)], SessionEnds(Redis()))
    running = asyncio.create_task(tokens.run())
    try:
        await until(lambda: tokens.keys[ISS] == 3)
        assert issuer.requests == 1
        issuer.keys["next"] = ed25519.Ed25519PrivateKey.generate()
        token = issuer.token("next")
        await until(lambda: isinstance(tokens.verify(token, int(time.time())), OutsideUser))
        assert issuer.requests == 2
        seen = set()
        began = time.monotonic()
        while time.monotonic() < began + 1.6:
            seen.add(tokens.verify(issuer.token(str(uuid4()), key=issuer.keys["ed"]), int(time.time())))
            await asyncio.sleep(0.001)
        # At most one fetch per cooldown, for any number of requests.
        assert issuer.requests <= 2 + (time.monotonic() - began) / 0.5 + 1
        assert seen == {Fault.INVALID, Fault.UNAVAILABLE}
        assert isinstance(tokens.verify(token, int(time.time())), OutsideUser)
    finally:
        await tasks.cancel(running)


@pytest.mark.parametrize(
    "value",
    [
        "{", "{}", '"x"', "[1]", '[{"iss": "a"}]',
        '[{"iss": "a", "aud": "b", "jwks_url": "http://example.com/"}]',
        '[{"iss": "a", "aud": "b", "jwks_url": "file:///etc/passwd"}]',
        '[{"iss": "a", "aud": "b", "jwks_url": "https://user@example.com/"}]',
        '[{"iss": "a", "aud": "b", "jwks_url": "https://x/", "algorithms": ["HS256"]}]',
        '[{"iss": "a", "aud": "b", "jwks_url": "https://x/", "algorithms": []}]',
        '[{"iss": "a", "aud": "b", "jwks_url": "https://x/", "token_s_max": 86401}]',
        '[{"iss": "a", "aud": "b", "jwks_url": "https://x/", "unknown": 1}]',
        "[" + ",".join(['{"iss": "a", "aud": "b", "jwks_url": "https://x/"}'] * 2) + "]",
    ],
)  # fmt: skip
def test_bad_settings_are_named(value: str) -> None:
    with pytest.raises(SettingsError, match="FLASHSALE_OUTSIDE_ISSUERS"):
        load_settings({"FLASHSALE_OUTSIDE_ISSUERS": value})
