"""Tokens of ended sessions at a real edge: refused at once, before any other check answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID, uuid4

import httpx
import redis

from devstack.servers import RedisServer
from domain import topology
from runtime.tokens.keys import LEEWAY_S, LoginClaims
from tests.fixtures.fix_edge import Buyers, EdgeProcess, Publisher

ONE = {"items": [{"sku": "SKU-1", "quantity": 1}]}
WAIT_S_MAX = 20.0


def end(server: RedisServer, user_id: UUID | None, seconds: int) -> int:
    """Publish like `runtime.tokens.session_ends.publish`; the generation."""
    member, generation = b"" if user_id is None else user_id.bytes, 1000 * seconds
    with redis.Redis(port=server.port) as client:
        client.zadd(topology.SESSION_ENDS_KEY, {member: generation}, gt=True)
        client.publish(topology.SESSION_ENDS_CHANNEL, b"%d %b" % (generation, member))
    return generation


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_ended(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["code"]) == (401, "token_invalid"), answer.text
    assert answer.json()["detail"] == "The session was ended; log in again"
    assert (
        answer.headers["www-authenticate"]
        == 'Bearer realm="flashsale", error="invalid_token", error_description="The access token is not valid"'
    )


def test_an_ended_session_is_refused_before_its_replays(
    edge_redis: RedisServer, client: httpx.Client, buyers: Buyers, publisher: Publisher
) -> None:
    sale = publisher.publish()
    path = f"/v1/sales/{sale.sale_id}/orders"
    user, other, now = uuid4(), uuid4(), int(time.time())
    # Of before the end, by a clock that is ahead: only the generation tells.
    before = buyers.token(user, now_s=now + LEEWAY_S - 5, login=LoginClaims(0, now))
    headers = {"Idempotency-Key": "one", "Authorization": f"Bearer {before}"}
    first = client.post(path, headers=headers, json=ONE)
    assert first.status_code == 202
    generation = end(edge_redis, user, now)
    until(lambda: client.get("/v1/orders", headers=headers).status_code == 401)
    assert_ended(client.post(path, headers=headers, json=ONE))
    assert_ended(client.get("/v1/orders", headers=headers))
    assert_ended(client.get(first.headers["location"], headers=headers))
    assert_ended(client.post(first.headers["location"] + "/cancel", headers=headers))
    assert (publisher.stock(sale).available, publisher.stock(sale).reserved) == (9, 1)
    # An older token without a generation, and one of the second of the end.
    for iat in (now - 5, now):
        assert_ended(client.post(path, headers={**headers, "Authorization": f"Bearer {buyers.token(user, now_s=iat)}"}))
    # Of after the end, by a clock that is behind: valid, and the replay is found.
    after = buyers.token(user, now_s=now - 5, login=LoginClaims(generation, now))
    headers["Authorization"] = f"Bearer {after}"
    again = client.post(path, headers=headers, json=ONE)
    assert again.status_code == 202 and again.headers["idempotency-replayed"] == "true"
    # Other users are not affected.
    headers["Authorization"] = f"Bearer {buyers.token(other, now_s=now - 5)}"
    assert client.post(path, headers=headers, json=ONE).status_code == 202


def test_an_edge_that_starts_knows_what_was_ended_before(
    own_edge: Callable[..., EdgeProcess], own_redis: RedisServer, buyers: Buyers
) -> None:
    user, now = uuid4(), int(time.time())
    end(own_redis, user, now)
    process = own_edge(redis_url=own_redis.url)
    headers = {"Authorization": f"Bearer {buyers.token(user, now_s=now - 5)}"}
    assert_ended(httpx.get(f"{process.url}/v1/orders", headers=headers))
    assert 'flashsale_edge_ended_sessions{worker="0"} 1.0' in httpx.get(f"{process.url}/metrics").text


def test_ends_that_came_while_the_channel_was_lost(
    own_edge: Callable[..., EdgeProcess], own_redis: RedisServer, buyers: Buyers
) -> None:
    process = own_edge(redis_url=own_redis.url)
    before, meanwhile, now = uuid4(), uuid4(), int(time.time())
    tokens = {user: f"Bearer {buyers.token(user, now_s=now - 5)}" for user in (before, meanwhile)}

    def is_ended(user: UUID) -> bool:
        answer = httpx.get(f"{process.url}/v1/orders/{uuid4()}", headers={"Authorization": tokens[user]})
        return answer.status_code == 401

    end(own_redis, before, now)
    until(lambda: is_ended(before))
    own_redis.kill()
    not_ready = process.wait_ready(status=503).json()
    assert "sessions" in not_ready["missing"] or "redis" in not_ready["missing"]
    assert is_ended(before), "known ends are kept"
    assert not is_ended(meanwhile)
    own_redis.start()
    with redis.Redis(port=own_redis.port) as client:
        client.zadd(topology.SESSION_ENDS_KEY, {meanwhile.bytes: 1000 * now})
    # Ready again only after reading the whole set.
    until(lambda: "sessions" in httpx.get(f"{process.url}/readyz").json()["missing"] or is_ended(meanwhile))
    process.wait_ready()
    until(lambda: is_ended(meanwhile))
    assert is_ended(before)


def test_one_end_for_everybody(own_edge: Callable[..., EdgeProcess], own_redis: RedisServer, buyers: Buyers) -> None:
    process = own_edge(redis_url=own_redis.url)
    now = int(time.time())
    ended_s = now - 2 * LEEWAY_S
    old, new = (
        {"Authorization": f"Bearer {buyers.token(now_s=iat, login=LoginClaims(0, iat))}"} for iat in (ended_s, now)
    )
    url = f"{process.url}/v1/orders/{uuid4()}"
    assert httpx.get(url, headers=old).status_code == 404
    end(own_redis, None, ended_s)
    until(lambda: httpx.get(url, headers=old).status_code == 401)
    assert_ended(httpx.get(url, headers=old))
    assert httpx.get(url, headers=new).status_code == 404
