"""Keys with ids as bytes: for any bytes, a real Redis finds exactly the keys of a pattern."""

from __future__ import annotations

from uuid import UUID

import redis

from domain import ids, topology
from domain.orders import pack_key
from domain.outcomes import Outcome
from domain.sales import Stock
from tests.reservation.lane import LANE, LaneClient, make_request, make_sale

# Every glob character, braces, line ends and invalid UTF-8; an id that differs in one byte; an id that the first one,
# read as a pattern, would match.
WILD = UUID(bytes=b"*?[a-z]\\^}{\r\n\0\xffa")
TAME = UUID(bytes=b"*?[a-z]\\^}{\r\n\0\xfea")
PREY = UUID(bytes=b"1234567b^}{\r\n\0\xffa")


def test_users_of_a_sale_are_found_whatever_the_ids(script_redis: redis.Redis) -> None:
    users = [WILD, UUID(int=0), UUID(int=2**128 - 1), UUID(bytes=b"}o" * 8)]
    expected = {}
    for sale_id in (WILD, TAME, PREY):
        expected[sale_id] = {topology.user_key(LANE, sale_id, user) for user in users}
        for key in expected[sale_id]:
            script_redis.hset(key, topology.USER_STATE_FIELD, b"x")
        script_redis.hset(topology.user_key(LANE + 1, sale_id, WILD), topology.USER_STATE_FIELD, b"x")
    for sale_id, keys in expected.items():
        found = set(script_redis.scan_iter(topology.user_key_pattern(LANE, sale_id)))
        assert found == keys
        assert {topology.id_of_key(key) for key in found} == set(users)


def test_orders_are_found_whatever_the_ids(script_redis: redis.Redis) -> None:
    order_ids = [
        ids.order_id(unix_ms=int.from_bytes(b"*?[\\}{"), lane=lane, bucket=1, random=int.from_bytes(b"\r\n\xff*?["))
        for lane in (0, 7, 99, 100, 4095)
    ]
    for order_id in order_ids:
        script_redis.set(topology.order_key(order_id), b"x")
    for key in (topology.lane_state_key(LANE), topology.lane_fence_key(LANE), topology.user_key(LANE, WILD, TAME)):
        script_redis.set(key, b"x")
    found = list(script_redis.scan_iter(topology.ORDER_KEYS_PATTERN))
    assert {topology.id_of_key(key) for key in found} == set(order_ids) and len(found) == len(order_ids)


def test_a_uuid_and_its_bytes_as_text_are_different_keys(lane: LaneClient) -> None:
    """A packed key is 16 bytes, as a key of 16 characters is; capital letters make another key."""
    sale = make_sale()
    lane.load(sale, [Stock.fresh(10)])
    user = ids.new_uuid7()
    keys = ["6f6f6f6f-6f6f-4f6f-af6f-6f6f6f6f6f6f", "6F6F6F6F-6F6F-4F6F-AF6F-6F6F6F6F6F6F", "ooooooOo/ooooooo"]
    assert pack_key(keys[0])[9:] == pack_key(keys[2])[9:]
    requests = [make_request(sale, user, key) for key in keys]
    for request in requests:
        assert lane.outcome(request) is Outcome.ACCEPTED
    for request in requests:
        assert lane.outcome(request) is Outcome.REPLAYED
    kept = lane.user(sale.sale_id, user)
    assert kept is not None and sorted(kept.records) == sorted(keys)
    assert [order.idempotency_key for order in lane.stream().values()] == keys
