"""The relay's pure parts: reading an entry, and its backlog against a model."""

from __future__ import annotations

import random
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from domain import ids
from domain.headers import HEADERS_LENGTH_MAX
from domain.topology import BUCKETS, Topology
from tests.workers.lane_entries import order_entry
from workers.relay.backlog import Backlog
from workers.relay.entries import ENTRY_LENGTH_MAX, bucket_of_entry, changed_at_ms, shard_table, sort_page


@given(seed=st.integers(0, 2**32), lane=st.integers(0, 99), bucket=st.integers(0, BUCKETS - 1))
def test_bucket_and_shard_are_those_of_the_domain(seed: int, lane: int, bucket: int) -> None:
    entry = order_entry(random.Random(seed), lane=lane, bucket=bucket)
    order_id = UUID(bytes=entry[26:42])
    assert bucket_of_entry(entry, lane) == ids.bucket_of(order_id) == bucket
    assert shard_table(Topology(shards=7))[bucket] == Topology(shards=7).shard_of_order(order_id)
    assert bucket_of_entry(entry, lane + 1) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_bucket_or_poison(data: bytes) -> None:
    bucket = bucket_of_entry(data, 0)
    assert bucket is None or 0 <= bucket < BUCKETS


def test_poison_keeps_its_bytes() -> None:
    good = order_entry(random.Random(1), lane=2, bucket=1023)
    page = [
        (b"7-0", {b"e": good}),
        (b"8-0", {b"e": good[:78]}),
        (b"9-0", {b"e": b"\x01" + good[1:]}),
        (b"10-0", {b"x": b"\xff", b"y": b""}),
        (b"11-0", {b"e": good + bytes(ENTRY_LENGTH_MAX)}),
        (b"12-0", {b"e": good[:32] + b"\x70" + good[33:]}),
    ]
    out = sort_page(page, lane=2, shard_by_bucket=shard_table(Topology()), poison=4)
    assert [(seq, destination) for seq, destination, _, _ in out] == [(7, 3), (8, 4), (9, 4), (10, 4), (11, 4), (12, 4)]
    assert out[1][2] == good[:78]
    assert out[3][2] == b'{"78":"ff","79":""}'


def test_headers_are_passed_on_unless_they_are_too_long() -> None:
    good = order_entry(random.Random(1), lane=2, bucket=1023)
    page = [
        (b"7-0", {b"e": good, b"h": b'{"a":"b"}'}),
        (b"8-0", {b"e": good}),
        (b"9-0", {b"e": good, b"h": bytes(HEADERS_LENGTH_MAX + 1)}),
        (b"10-0", {b"e": b"poison", b"h": b"{}"}),
    ]
    out = sort_page(page, lane=2, shard_by_bucket=shard_table(Topology()), poison=4)
    assert [(destination, headers) for _, destination, _, headers in out] == [
        (3, b'{"a":"b"}'), (3, b""), (3, b""), (4, b""),
    ]  # fmt: skip
    assert out[3][2] == b"poison"


def test_the_age_of_a_malformed_entry_is_unknown() -> None:
    assert changed_at_ms({b"e": b"short"}) is None
    assert changed_at_ms({}) is None
    assert changed_at_ms({b"e": bytes(20) + (5).to_bytes(6, "big") + bytes(60)}) == 5


@given(
    st.lists(st.sampled_from(["offer", "take", "confirm", "again"]), max_size=200), st.randoms(use_true_random=False)
)
def test_backlog_never_loses_an_entry_and_keeps_its_bound(steps: list[str], rng: random.Random) -> None:
    backlog = Backlog(8)
    next_seq = 1
    unconfirmed: set[int] = set()  # the model: offered, whether kept or left out, and not confirmed
    flights: list[list[int]] = []
    for step in steps:
        if step == "offer":
            backlog.offer(next_seq, b"")
            unconfirmed.add(next_seq)
            next_seq += rng.randint(1, 3)
        elif step == "take":
            flight = [seq for seq, _, _ in backlog.take(rng.randint(1, 5))]
            assert flight == sorted(flight)
            if flight:
                flights.append(flight)
        elif step == "confirm" and flights:
            flight = flights.pop(rng.randrange(len(flights)))
            backlog.confirm(flight[0])
            unconfirmed.difference_update(flight)
        elif step == "again" and backlog.left_out_from is not None:
            for seq in sorted(s for s in unconfirmed if s >= (backlog.left_out_from or 0)):
                if not backlog.offer_again(seq, b""):
                    break
            else:
                backlog.left_out_from = None
        in_flight = sum(len(flight) for flight in flights)
        assert len(unconfirmed) >= in_flight
        oldest = backlog.oldest_unconfirmed
        # Never later than the truth: trimmed entries are confirmed. Without anything left out, it is the truth.
        assert oldest is None or oldest <= min(unconfirmed, default=oldest)
        assert (oldest is not None) or not unconfirmed
        if backlog.left_out_from is None:
            assert oldest == min(unconfirmed, default=None)
        assert backlog.room.is_set() == backlog.has_room
    assert len(backlog.take(100)) <= 8
