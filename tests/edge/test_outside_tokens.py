"""Buyers of an outside issuer at a real edge: they order like all buyers, but only with valid tokens."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from devstack.servers import RedisServer
from domain import topology
from runtime.tokens.keys import LEEWAY_S
from runtime.tokens.outside_tokens import derived_user_id
from tests.fixtures.fix_edge import Buyers, EdgeProcess, Publisher
from tests.fixtures.fix_issuer import ISS, Issuer

ONE = {"items": [{"sku": "SKU-1", "quantity": 1}]}
USER = derived_user_id(ISS, "user|42")
StartEdge = Callable[..., EdgeProcess]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Shop:
    """An edge with an outside issuer, and a sale."""

    def __init__(self, edge: EdgeProcess, publisher: Publisher) -> None:
        self.edge = edge
        self.publisher = publisher
        self.sale = publisher.publish()

    def order(self, token: str, key: str = "one") -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": key}
        return httpx.post(f"{self.edge.url}/v1/sales/{self.sale.sale_id}/orders", headers=headers, json=ONE)

    def get(self, path: str, token: str) -> httpx.Response:
        return httpx.get(self.edge.url + path, headers={"Authorization": f"Bearer {token}"})

    def orders(self, token: str) -> httpx.Response:
        return self.get("/v1/orders", token)

    @property
    def keys(self) -> str:
        """The metrics line with the number of the issuer's keys."""
        lines = httpx.get(f"{self.edge.url}/metrics").text.splitlines()
        return next(line for line in lines if line.startswith("flashsale_edge_outside_keys{"))


@pytest.fixture
def shop(own_edge: StartEdge, edge_redis: RedisServer, publisher: Publisher, issuer: Issuer) -> Shop:
    shop = Shop(own_edge(redis_url=edge_redis.url, outside_issuers=issuer.setting()), publisher)
    until(lambda: shop.keys.endswith(" 3.0"))
    return shop


def test_orders_of_outside_buyers(shop: Shop, issuer: Issuer, buyers: Buyers) -> None:
    answers = [shop.order(issuer.token(kid)) for kid in ("ed", "ec", "rsa")]
    assert [answer.status_code for answer in answers] == [202] * 3
    # One user, for any key and token: the first order and its replays.
    assert len({answer.json()["order_id"] for answer in answers}) == 1
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true", "true"]
    path = answers[0].headers["location"]
    assert shop.get(path, issuer.token("ec", jti="another")).json() == answers[0].json() | {"payment": "none"}
    # Another subject is another user. Tokens of our own issuer still work.
    assert shop.get(path, issuer.token(sub="user|43")).json()["code"] == "order_not_found"
    assert shop.order(buyers.token()).status_code == 202
    assert shop.publisher.stock(shop.sale).reserved == 2


def test_bad_outside_tokens(shop: Shop, issuer: Issuer) -> None:
    now = int(time.time())
    bad = {
        "token_invalid": [
            issuer.token(aud="another"), issuer.token(iss="https://evil.example.com/"), issuer.token(sub=""),
            issuer.token(key=ed25519.Ed25519PrivateKey.generate()), issuer.token("rsa", alg="RS512"), "a.b.c",
        ],
        "token_expired": [issuer.token(iat=now - 100, exp=now - 1)],
    }  # fmt: skip
    for code, tokens in bad.items():
        for token in tokens:
            for answer in (shop.order(token), shop.orders(token)):
                assert (answer.status_code, answer.json()["code"]) == (401, code), token
                assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert shop.publisher.stock(shop.sale).reserved == 0


def test_their_sessions_end_too(shop: Shop, issuer: Issuer) -> None:
    now = int(time.time())
    ended_s = now - LEEWAY_S - 1
    token = issuer.token(iat=ended_s + LEEWAY_S)  # of before the end, if the clock of the issuer is ahead
    assert shop.order(token).status_code == 202
    member = USER.bytes
    shop.publisher.redis.zadd(topology.SESSION_ENDS_KEY, {member: 1000 * ended_s})
    shop.publisher.redis.publish(topology.SESSION_ENDS_CHANNEL, b"%d %b" % (1000 * ended_s, member))
    until(lambda: shop.orders(token).status_code == 401)
    answer = shop.order(token)
    assert (answer.status_code, answer.json()["detail"]) == (401, "The session was ended; log in again")
    assert shop.order(issuer.token(iat=now)).headers["idempotency-replayed"] == "true"


def test_an_issuer_that_is_away(
    own_edge: StartEdge, edge_redis: RedisServer, publisher: Publisher, issuer: Issuer, buyers: Buyers
) -> None:
    """The edge is ready without the issuer. Its buyers wait, ours do not. Keys stay in use once they are known."""
    issuer.status = 503
    shop = Shop(own_edge(redis_url=edge_redis.url, outside_issuers=issuer.setting()), publisher)
    for answer in (shop.order(issuer.token()), shop.orders(issuer.token())):
        assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")
        assert answer.headers["retry-after"]
    assert shop.order(buyers.token()).status_code == 202
    issuer.status = 200
    until(lambda: shop.order(issuer.token()).status_code == 202)
    issuer.stop()
    assert shop.order(issuer.token(jti="fresh")).status_code == 202


def test_only_their_buyers(own_edge: StartEdge, edge_redis: RedisServer, publisher: Publisher, issuer: Issuer) -> None:
    setting = issuer.setting(buyer_roles=["customer"], staff_roles=["ops"])
    shop = Shop(own_edge(redis_url=edge_redis.url, outside_issuers=setting), publisher)
    until(lambda: shop.keys.endswith(" 3.0"))
    assert shop.order(issuer.token(roles=["customer"])).status_code == 202
    for roles in (["ops"], [], ["Customer"]):
        assert shop.order(issuer.token(roles=roles), key="two").json()["code"] == "token_invalid"


def test_without_issuers_their_tokens_are_nothing(edge: EdgeProcess, publisher: Publisher, issuer: Issuer) -> None:
    shop = Shop(edge, publisher)
    assert shop.order(issuer.token()).json()["code"] == "token_invalid"
    assert shop.orders(issuer.token()).json()["code"] == "token_invalid"
    assert issuer.requests == 0
