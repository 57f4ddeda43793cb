"""Every route with every kind of caller, and every kind of token that must be rejected."""

from __future__ import annotations

import base64
import json
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from backoffice.application import Backoffice
from backoffice.web.messages import EVERYONE, STAFF
from backoffice.web.routing import Route
from devstack.servers import RedisServer
from runtime.process.settings import load_settings
from runtime.tokens.key_watch import KeyWatch
from runtime.tokens.keys import (
    create_staff_key,
    create_token_keys,
    load_staff_keys,
    load_token_keys,
    mint_buyer_token,
    mint_staff_token,
)
from tests.fixtures.fix_backoffice import BackofficeProcess
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_issuer import Issuer

ANYONE, NEEDS_TOKEN, NEEDS_STAFF = "anyone", "needs a token", "needs staff"
OPTIONAL = "anyone, but a token must be good"
TOKEN_CODES = ("token_missing", "token_invalid", "token_expired", "forbidden")
ID = "01890000-0000-7000-8000-000000000001"
ROUTES = {
    "POST /v1/auth/register": ANYONE,
    "POST /v1/auth/login": ANYONE,
    "POST /v1/auth/refresh": ANYONE,
    "POST /v1/auth/logout": ANYONE,
    "POST /v1/auth/logout-everywhere": NEEDS_TOKEN,
    "POST /v1/users/{user_id}/logout": NEEDS_STAFF,
    "POST /v1/auth/password": NEEDS_TOKEN,
    "POST /v1/auth/password-reset": ANYONE,
    "POST /v1/auth/verify-email": ANYONE,
    "POST /v1/auth/undo-email-change": ANYONE,
    "GET /.well-known/jwks.json": ANYONE,
    "GET /v1/users/me": NEEDS_TOKEN,
    "PATCH /v1/users/me": NEEDS_TOKEN,
    "DELETE /v1/users/me": NEEDS_TOKEN,
    "GET /v1/users/me/preferences": NEEDS_TOKEN,
    "PATCH /v1/users/me/preferences": NEEDS_TOKEN,
    "GET /v1/users/me/push-subscriptions": NEEDS_TOKEN,
    "POST /v1/users/me/push-subscriptions": NEEDS_TOKEN,
    "DELETE /v1/users/me/push-subscriptions": NEEDS_TOKEN,
    "GET /v1/push-key": ANYONE,
    "GET /v1/notice-samples": NEEDS_STAFF,
    "GET /v1/notice-samples/{kind}/{language}": NEEDS_STAFF,
    "GET /v1/users": NEEDS_STAFF,
    "GET /v1/users/{user_id}": NEEDS_STAFF,
    "PATCH /v1/users/{user_id}": NEEDS_STAFF,
    "DELETE /v1/users/{user_id}": NEEDS_STAFF,
    "GET /v1/products": OPTIONAL,
    "POST /v1/products": NEEDS_STAFF,
    "POST /v1/products/import": NEEDS_STAFF,
    "GET /v1/products/{product_id}": OPTIONAL,
    "PATCH /v1/products/{product_id}": NEEDS_STAFF,
    "DELETE /v1/products/{product_id}": NEEDS_STAFF,
    "GET /v1/sales": NEEDS_STAFF,
    "POST /v1/sales": NEEDS_STAFF,
    "GET /v1/sales/{sale_id}": NEEDS_STAFF,
    "PATCH /v1/sales/{sale_id}": NEEDS_STAFF,
    "DELETE /v1/sales/{sale_id}": NEEDS_STAFF,
    "POST /v1/sales/{sale_id}/publish": NEEDS_STAFF,
    "POST /v1/sales/{sale_id}/pause": NEEDS_STAFF,
    "POST /v1/sales/{sale_id}/resume": NEEDS_STAFF,
    "POST /v1/sales/{sale_id}/end": NEEDS_STAFF,
    "POST /v1/sales/{sale_id}/restock": NEEDS_STAFF,
    "GET /v1/sales/{sale_id}/report": NEEDS_STAFF,
    "GET /v1/orders": NEEDS_STAFF,
    "GET /v1/orders/{order_id}": NEEDS_STAFF,
    "POST /v1/orders/{order_id}/cancel": NEEDS_STAFF,
    "POST /v1/orders/{order_id}/refund": NEEDS_STAFF,
    "GET /v1/analytics/sales/{sale_id}": NEEDS_STAFF,
    "GET /v1/audit": NEEDS_STAFF,
    "GET /v1/audit/export": NEEDS_STAFF,
    "GET /v1/dead-letters": NEEDS_STAFF,
    "GET /v1/dead-letters/{letter_id}": NEEDS_STAFF,
    "POST /v1/dead-letters/{letter_id}/replay": NEEDS_STAFF,
    "DELETE /v1/dead-letters/{letter_id}": NEEDS_STAFF,
    "GET /v1/webhooks": NEEDS_STAFF,
    "POST /v1/webhooks": NEEDS_STAFF,
    "GET /v1/webhooks/{webhook_id}": NEEDS_STAFF,
    "DELETE /v1/webhooks/{webhook_id}": NEEDS_STAFF,
    "GET /v1/webhooks/{webhook_id}/deliveries": NEEDS_STAFF,
    "POST /v1/webhooks/{webhook_id}/enable": NEEDS_STAFF,
    "POST /v1/webhooks/{webhook_id}/disable": NEEDS_STAFF,
    "POST /v1/webhooks/{webhook_id}/secret": NEEDS_STAFF,
    "POST /v1/webhooks/{webhook_id}/ping": NEEDS_STAFF,
    "POST /v1/webhooks/{webhook_id}/deliveries/{delivery_id}/replay": NEEDS_STAFF,
    "GET /v1/operations/live": NEEDS_STAFF,
    "GET /": ANYONE,
    "GET /shop/{sale_id}": ANYONE,
    "GET /shop/orders": ANYONE,
    "GET /shop/orders/{order_id}": ANYONE,
    "GET /docs": ANYONE,
    "GET /account/verify-email": ANYONE,
    "GET /account/password-reset": ANYONE,
    "GET /account/undo-email-change": ANYONE,
    "GET /livez": ANYONE,
    "GET /readyz": ANYONE,
    "GET /metrics": ANYONE,
    "GET /openapi.json": ANYONE,
}


class Minting:
    """The keys of a running backoffice, to make valid and invalid tokens."""

    def __init__(self, process: BackofficeProcess) -> None:
        self.ring = load_token_keys(process.token_keys_file)
        self.staff = load_staff_keys(process.staff_key_file).signing
        self.buyer_key = self.ring.keys[self.ring.active]

    def buyer(self, **members: Any) -> str:
        return mint_buyer_token(self.ring, **{"user_id": uuid4(), "issuer": "flashsale", "ttl_s": 900, **members})

    def of_staff(self, role: str = "staff", **members: Any) -> str:
        return mint_staff_token(
            self.staff, role=role, **{"user_id": uuid4(), "issuer": "flashsale", "ttl_s": 900, **members}
        )

    def forged_staff(self) -> str:
        """A token that the keys of an edge can make."""
        return jwt.encode(self.claims(), self.buyer_key, "HS256", {"kid": self.ring.active})

    def claims(self, **members: Any) -> dict[str, Any]:
        now = int(time.time())
        return {
            "sub": ID,
            "iss": "flashsale",
            "aud": "backoffice",
            "roles": ["admin"],
            "iat": now,
            "exp": now + 900,
            **members,
        }


@pytest.fixture
def minting(backoffice: BackofficeProcess) -> Minting:
    return Minting(backoffice)


@pytest.fixture(scope="module")
def outsiders() -> Iterator[Issuer]:
    """An issuer with the roles customers, ops and roots for buyers, staff and administrators."""
    issuer = Issuer({"ed": Ed25519PrivateKey.generate()})
    issuer.start()
    yield issuer
    issuer.stop()


@pytest.fixture(scope="module")
def open_to_outsiders(
    redis_server: RedisServer, migrated: Databases, outsiders: Issuer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BackofficeProcess]:
    """A backoffice that accepts tokens of every kind."""
    process = BackofficeProcess(tmp_path_factory.mktemp("roles"), redis_server.url, migrated)
    roles = {"buyer_roles": ["customer"], "staff_roles": ["ops"], "admin_roles": ["root"]}
    process.environ = {"FLASHSALE_OUTSIDE_ISSUERS": outsiders.setting(**roles)}
    process.start()
    deadline = time.monotonic() + 20
    while _ask(process, "GET", "/v1/sales", outsiders.token(roles=["ops"]))[0] == 503:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    try:
        assert process.stop() == 0
    finally:
        process.kill()


def _ask(process: BackofficeProcess, method: str, path: str, token: str | None) -> tuple[int, str]:
    """Status and problem code."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with httpx.stream(method, process.url + path, headers=headers) as answer:
        if answer.status_code < 400:  # one of the others never ends
            return answer.status_code, ""
        document = json.loads(answer.read())
    assert ("error=" in answer.headers.get("www-authenticate", "")) == document["code"].startswith(
        ("token_invalid", "token_expired")
    )
    return answer.status_code, document["code"]


def _routes() -> tuple[Route, ...]:
    """The route table itself, so that undescribed routes are tested, too."""
    with tempfile.TemporaryDirectory() as folder:
        ring, staff = Path(folder) / "ring.json", Path(folder) / "staff.pem"
        create_token_keys(ring)
        create_staff_key(staff)
        settings = load_settings({"FLASHSALE_SHARD_DSNS": ",".join(["postgresql://nowhere.invalid/shard"] * 4)})
        keys = {"buyer_keys": KeyWatch(ring, load_token_keys), "staff_keys": KeyWatch(staff, load_staff_keys)}
        return Backoffice(settings, **keys).routes  # type: ignore[arg-type]  # the values have different types


def test_the_table_is_complete(backoffice: BackofficeProcess) -> None:
    needs = {None: ANYONE, EVERYONE: NEEDS_TOKEN, STAFF: NEEDS_STAFF}
    table = {f"{route.method} {route.path}": OPTIONAL if route.anonymous else needs[route.roles] for route in _routes()}
    files = [operation for operation in table if operation.startswith("GET /static/") or operation == "GET /shop/sw.js"]
    assert table == {**ROUTES, **dict.fromkeys(files, ANYONE)}
    paths = httpx.get(backoffice.url + "/openapi.json").json()["paths"]
    described = {f"{method.upper()} {path}" for path, operations in paths.items() for method in operations}
    assert described == set(ROUTES)


@pytest.mark.parametrize("operation", ROUTES)
def test_route_by_role_and_kind_of_token(
    open_to_outsiders: BackofficeProcess, outsiders: Issuer, operation: str
) -> None:
    process, minting = open_to_outsiders, Minting(open_to_outsiders)
    method, path = operation.split(" ")
    path = re.sub(r"\{[a-z]+_id\}", ID, path)
    now = int(time.time())

    def outside(*roles: str, **claims: Any) -> str:
        return outsiders.token(roles=list(roles), sub=str(uuid4()), **claims)

    passing = {
        "buyer": {"our own": minting.buyer(), "another issuer's": outside("customer")},
        "staff": {"our own": minting.of_staff(), "another issuer's": outside("ops", "customer")},
        "admin": {"our own": minting.of_staff("admin"), "another issuer's": outside("root")},
    }
    refused = {
        "HS256 with role staff": (minting.forged_staff(), "token_invalid"),
        "EdDSA with role buyer": (minting.of_staff("buyer"), "token_invalid"),
        "none of the issuer's roles": (outside("admin", "staff", "buyer"), "token_invalid"),
        "a stranger's signature": (outside("root", key=Ed25519PrivateKey.generate()), "token_invalid"),
        "expired": (minting.of_staff("admin", now_s=now - 901), "token_expired"),
        "expired, another issuer's": (outside("root", iat=now - 901, exp=now - 1), "token_expired"),
    }
    needs = ROUTES[operation]
    status, code = _ask(process, method, path, None)
    if needs in (ANYONE, OPTIONAL):
        assert code not in TOKEN_CODES
    else:
        assert (status, code) == (401, "token_missing")
    if needs == ANYONE:
        return
    for name, (token, wanted) in refused.items():
        assert _ask(process, method, path, token) == (401, wanted), name
    for role, kinds in passing.items():
        for kind, token in kinds.items():
            answer = _ask(process, method, path, token)
            if needs == NEEDS_STAFF and role == "buyer":
                assert answer == (403, "forbidden"), kind
            else:
                assert answer[1] not in TOKEN_CODES, (role, kind)


def _segment(document: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


def test_tokens_that_are_not_believed(backoffice: BackofficeProcess, minting: Minting) -> None:
    kid, private, active = minting.staff.kid, minting.staff.private, minting.ring.active
    public = httpx.get(backoffice.url + "/.well-known/jwks.json").json()["keys"][0]["x"]
    good = minting.of_staff("admin")
    head, body, signature = good.split(".")
    claims = minting.claims
    without = {name: {k: v for k, v in claims().items() if k != name} for name in claims()}
    forged = {
        "changed body": f"{head}.{_segment(claims(sub=str(uuid4())))}.{signature}",
        "no signature": f"{head}.{body}.",
        "alg none": f"{_segment({'alg': 'none', 'kid': kid})}.{body}.",
        "alg None": f"{_segment({'alg': 'None', 'kid': kid})}.{body}.{signature}",
        "public key as HS256 secret": jwt.encode(claims(), public * 2, "HS256", {"kid": kid}),
        "HS256 by the ring, staff claims": jwt.encode(claims(), minting.buyer_key, "HS256", {"kid": active}),
        "HS256 by the ring, edge, role staff": jwt.encode(
            claims(aud="edge", roles=["staff"]), minting.buyer_key, "HS256", {"kid": active}
        ),
        "HS256 by the ring, buyer and admin": jwt.encode(
            claims(aud="edge", roles=["buyer", "admin"]), minting.buyer_key, "HS256", {"kid": active}
        ),
        "HS256 by the ring, both audiences": jwt.encode(
            claims(aud=["edge", "backoffice"], roles=["buyer"]), minting.buyer_key, "HS256", {"kid": active}
        ),
        "HS512 by the ring": jwt.encode(
            claims(aud="edge", roles=["buyer"]), minting.buyer_key * 2, "HS512", {"kid": active}
        ),
        "EdDSA for the edge": jwt.encode(claims(aud="edge"), private, "EdDSA", {"kid": kid}),
        "EdDSA with role buyer": jwt.encode(claims(roles=["buyer"]), private, "EdDSA", {"kid": kid}),
        "EdDSA without roles": jwt.encode(without["roles"], private, "EdDSA", {"kid": kid}),
        "roles as text": jwt.encode(claims(roles="admin"), private, "EdDSA", {"kid": kid}),
        "unknown role": jwt.encode(claims(roles=["root"]), private, "EdDSA", {"kid": kid}),
        "unknown kid": jwt.encode(claims(), private, "EdDSA", {"kid": "other"}),
        "no kid": jwt.encode(claims(), private, "EdDSA"),
        "another's key": jwt.encode(claims(), Ed25519PrivateKey.generate(), "EdDSA", {"kid": kid}),
        "another issuer": minting.of_staff("admin", issuer="someone"),
        "subject is no id": jwt.encode(claims(sub="admin"), private, "EdDSA", {"kid": kid}),
        "issued in the future": jwt.encode(claims(iat=int(time.time()) + 600), private, "EdDSA", {"kid": kid}),
        "not valid yet": jwt.encode(claims(nbf=int(time.time()) + 600), private, "EdDSA", {"kid": kid}),
        **{
            f"without {name}": jwt.encode(without[name], private, "EdDSA", {"kid": kid})
            for name in ("sub", "iss", "aud", "iat", "exp")
        },
        "own key in the header": jwt.encode(claims(), private, "EdDSA", {"kid": "x", "jwk": {"kty": "OKP"}}),
        "rubbish": "abc",
        "dots": "..",
        "not base64": "%%%.%%%.%%%",
        "huge": "a" * 5000,
        "not ASCII": "caf\u00e9",
    }
    for name, token in forged.items():
        header = f"Bearer {token}".encode("latin-1")
        answer = httpx.get(backoffice.url + "/v1/sales", headers={"Authorization": header})
        assert (answer.status_code, answer.json()["code"]) == (401, "token_invalid"), name
    expired = jwt.encode(claims(exp=int(time.time()) - 1), private, "EdDSA", {"kid": kid})
    answer = httpx.get(backoffice.url + "/v1/sales", headers={"Authorization": f"Bearer {expired}"})
    assert (answer.status_code, answer.json()["code"]) == (401, "token_expired")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert httpx.get(backoffice.url + "/v1/sales", headers={"Authorization": f"bearer {good}"}).status_code == 200


def test_other_schemes_are_no_token(backoffice: BackofficeProcess) -> None:
    for value in ("", "Basic YWRtaW46eA==", "Bearer", "Token x"):
        answer = httpx.get(backoffice.url + "/v1/sales", headers={"Authorization": value})
        assert (answer.status_code, answer.json()["code"]) == (401, "token_missing"), value


def test_a_buyer_without_account_is_not_found(backoffice: BackofficeProcess, minting: Minting) -> None:
    token = minting.buyer(user_id=uuid4())  # other tests end the sessions of ID
    answer = httpx.get(backoffice.url + "/v1/users/me", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json()["code"]) == (404, "user_not_found")
