"""Callers of an outside issuer at the backoffice: staff only if configured, and only with valid tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from devstack.servers import RedisServer
from runtime.tokens.outside_tokens import derived_user_id
from tests.fixtures.fix_backoffice import BackofficeProcess
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_issuer import ISS, Issuer

ROLES = {"buyer_roles": ["customer"], "staff_roles": ["ops"], "admin_roles": ["root"]}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def own(databases: Databases, own_redis: RedisServer, tmp_path: Path, issuer: Issuer) -> Iterator[BackofficeProcess]:
    process = BackofficeProcess(tmp_path, own_redis.url, databases)
    process.environ = {"FLASHSALE_OUTSIDE_ISSUERS": issuer.setting(**ROLES)}
    process.start()
    yield process
    try:
        assert process.stop() == 0
    finally:
        process.kill()


def test_outside_callers(own: BackofficeProcess, issuer: Issuer) -> None:
    def ask(path: str, *, method: str = "GET", token: str = "", **claims: object) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {token or issuer.token(**claims)}"}
        answer = httpx.request(method, own.url + path, headers=headers)
        return answer.status_code, answer.json()["code"] if answer.status_code >= 400 else ""

    until(lambda: ask("/v1/sales", roles=["ops"])[0] != 503)
    for role in ("ops", "root"):
        assert ask("/v1/sales", roles=[role]) == (200, "")
    assert ask("/v1/sales", roles=["customer"]) == (403, "forbidden")
    # Our own role names have no effect in tokens of this issuer.
    assert ask("/v1/sales", roles=["admin", "staff"]) == (401, "token_invalid")
    assert ask("/v1/sales") == (401, "token_invalid")
    assert ask("/v1/users/me", roles=["customer"]) == (404, "user_not_found")
    now = int(time.time())
    assert ask("/v1/sales", roles=["ops"], aud="another") == (401, "token_invalid")
    assert ask("/v1/sales", roles=["ops"], iat=now - 100, exp=now - 1) == (401, "token_expired")
    # Their sessions end like ours.
    token = issuer.token(roles=["ops"], iat=now - 5)
    assert ask("/v1/auth/logout-everywhere", method="POST", token=token) == (204, "")
    assert ask("/v1/sales", token=token) == (401, "token_invalid")
    user = derived_user_id(ISS, "user|43")
    other = issuer.token("rsa", sub="user|43", roles=["ops"])
    assert ask("/v1/sales", token=other) == (200, "")
    admin = issuer.token(sub="user|44", roles=["root"])
    assert ask(f"/v1/users/{user}/logout", method="POST", token=admin) == (204, "")
    assert ask("/v1/sales", token=other) == (401, "token_invalid")
