"""Lanes, virtual buckets and names: even, stable, and the same in every process."""

from __future__ import annotations

import random
from collections import Counter
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import ids, topology
from domain.topology import BUCKETS, Topology
from tests.domain.strategies import uuids

USERS = 100_000


def _random_users() -> list[UUID]:
    source = random.Random(20260101)
    return [UUID(int=source.getrandbits(128)) for _ in range(USERS)]


def _users_of_one_burst() -> list[UUID]:
    """UUIDv7 made in the same few milliseconds, counting up: the least random ids that we could meet."""
    return [UUID(int=(0x0190163D8694 + n // 1000 << 80) | (7 << 76) | (2 << 62) | n) for n in range(USERS)]


@pytest.mark.parametrize("users", [_random_users(), _users_of_one_burst()], ids=["random", "burst"])
def test_users_spread_evenly(users: list[UUID]) -> None:
    layout = Topology()
    shards = Counter(layout.shard_of_user(user) for user in users)
    lanes = Counter(topology.home_lane(user, (0, 1, 2, 3)) for user in users)
    both = Counter((layout.shard_of_user(user), topology.home_lane(user, (0, 1, 2, 3))) for user in users)
    assert set(shards) == set(lanes) == {0, 1, 2, 3}
    for count in (*shards.values(), *lanes.values()):
        assert abs(count - USERS / 4) < 0.05 * USERS / 4
    # A user's lane says nothing about the shard: one lane's batch feeds all shards alike.
    assert len(both) == 16
    for count in both.values():
        assert abs(count - USERS / 16) < 0.10 * USERS / 16
    assert len({topology.bucket_of_user(user) for user in users}) == BUCKETS


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (UUID(int=0), 0x88201FB960FF6465),
        (UUID("0190163d-8694-739b-aea5-966c26f8ad91"), None),
        (UUID(bytes=b"0123456789abcdef"), None),
    ],
)
def test_hash_is_folded_fnv1a(user: UUID, expected: int | None) -> None:
    value = 14695981039346656037
    for byte in user.bytes:
        value = (value ^ byte) * 1099511628211 % 2**64
    if expected is not None:
        assert value == expected  # FNV-1a 64 of sixteen zero bytes
    assert topology.user_hash(user) == value ^ (value >> 29)


@given(uuids, st.integers(1, 64))
def test_ids_and_users_agree_on_the_shard(user: UUID, shards: int) -> None:
    layout = Topology(shards=shards)
    bucket = topology.bucket_of_user(user)
    assert 0 <= bucket < BUCKETS
    order = ids.order_id(unix_ms=1, lane=2, bucket=bucket, random=3)
    assert layout.shard_of_order(order) == layout.shard_of_user(user) == layout.shard_of_bucket(bucket)
    assert 0 <= layout.shard_of_user(user) < shards


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 5, 7, 16, 64])
def test_every_shard_has_its_share_of_buckets(shards: int) -> None:
    layout = Topology(shards=shards)
    counts = Counter(layout.shard_of_bucket(bucket) for bucket in range(BUCKETS))
    assert set(counts) == set(range(shards))
    assert max(counts.values()) - min(counts.values()) <= 1


@given(uuids, st.integers(1, 100), st.data())
def test_lanes_of_a_sale(sale: UUID, lanes: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, lanes))
    chosen = Topology(lanes=lanes).lanes_of_sale(sale, count=count)
    assert len(set(chosen)) == count
    assert all(0 <= lane < lanes for lane in chosen)
    assert topology.home_lane(sale, chosen) in chosen


def test_more_lanes_than_there_are_is_a_programmer_error() -> None:
    for count in (0, 5):
        with pytest.raises(AssertionError):
            Topology(lanes=4).lanes_of_sale(UUID(int=1), count=count)


def test_fingerprint_tells_every_cluster_setting() -> None:
    layouts = [Topology(), Topology(lanes=5), Topology(shards=5), Topology(lanes=5, shards=5)]
    assert len({layout.fingerprint for layout in layouts}) == 4
    assert Topology().fingerprint == Topology(lanes=4, shards=4).fingerprint
    # Fixed: a release that changes it cannot run beside the one before.
    assert Topology().fingerprint == "88cad3ea6c316f44"


@given(st.text(min_size=1, max_size=40))
def test_outbox_partition_is_in_range(key: str) -> None:
    assert 0 <= topology.outbox_partition(key) < topology.OUTBOX_PARTITIONS


def test_outbox_partitions_are_all_used() -> None:
    assert {topology.outbox_partition(f"order-{n}") for n in range(1000)} == set(range(topology.OUTBOX_PARTITIONS))


def test_names_are_as_documented() -> None:
    sale, user = UUID(int=1), UUID(int=2)
    order = ids.order_id(unix_ms=1, lane=7, bucket=3, random=4)
    assert topology.lane_state_key(7) == "{7}:state"
    assert topology.lane_stream_key(7) == "{7}:stream"
    assert topology.lane_lease_key(7) == "{7}:lease"
    assert topology.lane_fence_key(7) == "{7}:fence"
    assert topology.user_key(7, sale, user) == b"{7}" + sale.bytes + user.bytes
    assert topology.order_key(order) == b"{7}o" + order.bytes
    assert topology.id_of_key(topology.user_key(7, sale, user)) == user
    assert topology.id_of_key(topology.order_key(order)) == order
    assert topology.restock_key(7, sale) == f"{{7}}:r:{ids.short(sale)}"
    assert topology.definition_field(sale) == f"d:{ids.short(sale)}"
    assert topology.stock_field(sale, 3) == f"s:{ids.short(sale)}:3"
    assert topology.sale_key(sale) == f"flashsale:sale:{sale}"
    assert topology.order_queue(3) == "orders.shard.3"


def test_the_lane_is_the_hash_tag_of_keys_whose_ids_have_braces() -> None:
    """Redis Cluster hashes the text between the first `{` and the first `}` after it."""
    braces = UUID(bytes=b"}{x}" * 4)
    for key in (topology.user_key(7, braces, braces), topology.order_key_prefix(7) + braces.bytes):
        assert key[key.index(b"{") : key.index(b"}") + 1] == topology.lane_tag(7).encode()
