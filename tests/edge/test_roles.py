"""Every route of the edge with every kind of token. The edge knows no role but the buyer."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from devstack.servers import RedisServer
from edge.worker import Ports, Worker
from runtime.process.settings import load_settings
from runtime.tokens.keys import create_staff_key, load_staff_keys, mint_staff_token
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_edge import ISSUER, Buyers, EdgeProcess, Publisher
from tests.fixtures.fix_issuer import Issuer

ANYONE, BUYERS = "anyone", "buyers"
ID = "01890000-0000-7000-8000-000000000001"
ROUTES = {
    "POST /v1/sales/{sale_id}/orders": BUYERS,
    "GET /v1/sales/{sale_id}": ANYONE,
    "GET /v1/orders": BUYERS,
    "GET /v1/orders/{order_id}": BUYERS,
    "POST /v1/orders/{order_id}/cancel": BUYERS,
    "POST /v1/orders/{order_id}/payment": BUYERS,
    "POST /v1/payments/webhook": ANYONE,  # signed by the provider
    "GET /openapi.json": ANYONE,
    "GET /livez": ANYONE,
    "GET /readyz": ANYONE,
    "GET /metrics": ANYONE,
}
TOKEN_CODES = ("token_missing", "token_invalid", "token_expired", "forbidden")


@pytest.fixture(scope="module")
def outsiders() -> Iterator[Issuer]:
    issuer = Issuer({"ed": Ed25519PrivateKey.generate()})
    issuer.start()
    yield issuer
    issuer.stop()


@pytest.fixture(scope="module")
def open_to_outsiders(
    edge_redis: RedisServer,
    migrated: Databases,
    buyers: Buyers,
    outsiders: Issuer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[EdgeProcess]:
    """An edge that accepts tokens of every issuer."""
    settings = {
        "redis_url": edge_redis.url,
        "shard_dsns": ",".join(migrated.shard_dsns),
        "token_keys_file": str(buyers.keys_file),
        "drain_ms": "50",
        "outside_issuers": outsiders.setting(buyer_roles=["customer"], staff_roles=["ops"], admin_roles=["root"]),
    }
    process = EdgeProcess(settings, tmp_path_factory.mktemp("edge") / "edge.log")
    process.start()
    deadline = time.monotonic() + 20
    while ask(process, "GET", "/v1/orders", outsiders.token(roles=["customer"]))[0] == 503:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    process.stop()


def ask(process: EdgeProcess, method: str, path: str, token: str | None) -> tuple[int, str]:
    """Status and problem code."""
    headers = {"Idempotency-Key": "key"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    body: Any = {"items": [{"sku": "SKU-1", "quantity": 1}]} if path.endswith("/orders") and method == "POST" else None
    answer = httpx.request(method, process.url + path, headers=headers, json=body)
    return answer.status_code, answer.json()["code"] if answer.status_code >= 400 else ""


def test_the_table_is_complete(buyers: Buyers, tmp_path: Path) -> None:
    settings = load_settings({"FLASHSALE_TOKEN_KEYS_FILE": str(buyers.keys_file)})
    table = Worker(settings, number=0, folder=tmp_path, ports=Ports(granian=0)).application._router.routes
    assert {f"{route.method} {route.template}" for route in table} == set(ROUTES)


@pytest.mark.parametrize("operation", ROUTES)
def test_route_by_role_and_kind_of_token(
    open_to_outsiders: EdgeProcess,
    buyers: Buyers,
    outsiders: Issuer,
    publisher: Publisher,
    tmp_path: Path,
    operation: str,
) -> None:
    method, path = operation.split(" ")
    sale = publisher.publish()
    path = re.sub(r"\{[a-z]+_id\}", ID, path.replace("{sale_id}", str(sale.sale_id)))
    create_staff_key(tmp_path / "staff.pem")
    staff_key = load_staff_keys(tmp_path / "staff.pem").signing
    now = int(time.time())

    def staff(role: str) -> str:
        return mint_staff_token(staff_key, user_id=UUID(ID), role=role, issuer=ISSUER, ttl_s=900)

    def ours(**claims: Any) -> str:
        whole = {"sub": str(uuid4()), "iss": ISSUER, "aud": "edge", "roles": ["buyer"], "iat": now, "exp": now + 900}
        keys = buyers.keys
        return jwt.encode({**whole, **claims}, keys.keys[keys.active], "HS256", {"kid": keys.active})

    def outside(*roles: str, **claims: Any) -> str:
        return outsiders.token(roles=list(roles), sub=str(uuid4()), **claims)

    passing = {
        "our own": ours(),
        "also another role": ours(roles=["buyer", "vip"]),
        "another issuer's": outside("customer"),
        "another issuer's, staff and customer": outside("ops", "customer"),
    }
    refused = {
        "staff": (staff("staff"), "token_invalid"),
        "administrator": (staff("admin"), "token_invalid"),
        "buyer by a staff key": (staff("buyer"), "token_invalid"),
        "HS256 with role staff": (ours(roles=["staff"]), "token_invalid"),
        "HS256 for the backoffice": (ours(aud="backoffice"), "token_invalid"),
        "another issuer's staff": (outside("ops"), "token_invalid"),
        "another issuer's administrator": (outside("root"), "token_invalid"),
        "another issuer's, by our names": (outside("buyer"), "token_invalid"),
        "a stranger's signature": (outside("customer", key=Ed25519PrivateKey.generate()), "token_invalid"),
        "expired": (ours(iat=now - 901, exp=now - 1), "token_expired"),
        "expired, another issuer's": (outside("customer", iat=now - 901, exp=now - 1), "token_expired"),
    }
    status, code = ask(open_to_outsiders, method, path, None)
    if ROUTES[operation] == ANYONE:
        assert code not in TOKEN_CODES
        return
    assert (status, code) == (401, "token_missing")
    for name, (token, wanted) in refused.items():
        assert ask(open_to_outsiders, method, path, token) == (401, wanted), name
    for name, token in passing.items():
        assert ask(open_to_outsiders, method, path, token)[1] not in TOKEN_CODES, name
