"""`reserve` and `lookup`, case by case."""

from __future__ import annotations

import struct
from dataclasses import replace
from uuid import UUID

import pytest
import redis
from redis.exceptions import ResponseError

from domain import ids, topology
from domain.orders import OrderStatus, encode_body
from domain.outcomes import Outcome
from domain.sales import LaneSaleState, SaleDefinition, Stock
from domain.topology import USER_STATE_FIELD
from reservation.scripts import LOOKUP, RESERVE
from tests.reference.reservations import Answer, Rate, Request
from tests.reservation.lane import (
    FAR_AWAY_MS,
    FREE_RATE,
    HOUR_MS,
    LANE,
    LONG_AGO_MS,
    LaneClient,
    batch_call,
    make_request,
    make_sale,
)

STATE, STREAM = topology.lane_state_key(LANE), topology.lane_stream_key(LANE)


@pytest.fixture
def sale(lane: LaneClient) -> SaleDefinition:
    """An open sale: plenty of SKU 0, three of SKU 1 (two a user), one of SKU 2."""
    sale = make_sale(limits=(0, 2, 0))
    assert lane.load(sale, [Stock.fresh(1000), Stock.fresh(3), Stock.fresh(1)]) == 1
    return sale


@pytest.fixture
def user() -> UUID:
    return ids.new_uuid7()


def outcomes(answers: list[Answer]) -> list[Outcome]:
    return [answer.outcome for answer in answers]


def test_an_accepted_order_is_everywhere(lane: LaneClient, sale: SaleDefinition, user: UUID) -> None:
    request = make_request(sale, user, "a-key", [(2, 1), (0, 5)])
    now_ms, answers = lane.reserve([request])
    assert answers == [Answer(Outcome.ACCEPTED)]
    entry = lane.order(request.order.order_id)
    assert entry is not None
    assert (entry.status, entry.version, entry.epoch) == (OrderStatus.RESERVED, 1, 1)
    assert (entry.reserved_at_ms, entry.changed_at_ms) == (now_ms, now_ms)
    assert entry.expires_at_ms == now_ms + HOUR_MS
    assert encode_body(entry) == encode_body(request.order)
    assert lane.stream() == {1: entry}
    assert lane.state()[b"seq"] == b"1"
    assert lane.stock(sale, 0) == Stock(995, 5, 0, 0, 1000, 0, 0)
    assert lane.stock(sale, 2) == Stock(0, 1, 0, 0, 1, 0, 0)
    kept = lane.user(sale.sale_id, user)
    assert kept is not None and kept.purchases == {2: 1, 0: 5}
    assert lane.redis.ttl(topology.order_key(request.order.order_id)) == -1


def test_same_key_twice_in_a_batch_is_a_replay(lane: LaneClient, sale: SaleDefinition, user: UUID) -> None:
    first, second = make_request(sale, user, "key"), make_request(sale, user, "key")
    other_lines = make_request(sale, user, "key", [(0, 2)])
    now_ms, answers = lane.reserve([first, second, other_lines])
    assert outcomes(answers) == [Outcome.ACCEPTED, Outcome.REPLAYED, Outcome.KEY_REUSED]
    assert answers[1].record is not None
    assert answers[1].record.order_id == first.order.order_id and answers[1].record.reserved_at_ms == now_ms
    assert len(lane.stream()) == 1 and lane.stock(sale).reserved == 1


def test_lines_in_another_order_are_the_same_request(lane: LaneClient, sale: SaleDefinition, user: UUID) -> None:
    lines = [(0, 1), (1, 2), (2, 1)]
    first = make_request(sale, user, "key", lines)
    assert lane.outcome(first) is Outcome.ACCEPTED
    _, [again] = lane.reserve([make_request(sale, user, "key", lines[::-1])])
    assert again.outcome is Outcome.REPLAYED and again.record is not None
    assert again.record.order_id == first.order.order_id
    assert again.record.lines == tuple(lines), "the first answer, lines in its order"
    assert lane.outcome(make_request(sale, user, "key", [(0, 2), (1, 1), (2, 1)])) is Outcome.KEY_REUSED
    assert lane.outcome(make_request(sale, user, "key", lines[:2])) is Outcome.KEY_REUSED


def test_the_last_unit_goes_to_the_first_of_a_batch(lane: LaneClient, sale: SaleDefinition) -> None:
    requests = [make_request(sale, ids.new_uuid7(), "key", [(2, 1)]) for _ in range(64)]
    _, answers = lane.reserve(requests)
    assert outcomes(answers) == [Outcome.ACCEPTED] + [Outcome.SOLD_OUT] * 63
    assert lane.stock(sale, 2) == Stock(0, 1, 0, 0, 1, 0, 0)


def test_all_lines_or_nothing(lane: LaneClient, sale: SaleDefinition, user: UUID) -> None:
    before = lane.snapshot()
    assert lane.outcome(make_request(sale, user, "key", [(0, 1), (2, 2)])) is Outcome.SOLD_OUT
    assert lane.snapshot() == before, "a refusal writes nothing"


def test_purchase_limits_hold_within_and_over_batches(lane: LaneClient, sale: SaleDefinition, user: UUID) -> None:
    _, answers = lane.reserve([make_request(sale, user, f"key-{at}", [(1, 1)]) for at in range(3)])
    assert outcomes(answers) == [Outcome.ACCEPTED, Outcome.ACCEPTED, Outcome.PURCHASE_LIMIT]
    assert lane.outcome(make_request(sale, user, "later", [(1, 1)])) is Outcome.PURCHASE_LIMIT
    assert lane.outcome(make_request(sale, user, "later", [(0, 1)])) is Outcome.ACCEPTED
    assert lane.outcome(make_request(sale, ids.new_uuid7(), "key", [(1, 2)])) is Outcome.SOLD_OUT


def test_a_purchase_counter_never_overflows(lane: LaneClient, user: UUID) -> None:
    sale = make_sale(limits=(0, 65_535))
    lane.load(sale, [Stock.fresh(100_000), Stock.fresh(100_000)])
    for sku in (0, 1):
        assert lane.outcome(make_request(sale, user, f"first-{sku}", [(sku, 100)])) is Outcome.ACCEPTED
        key = topology.user_key(LANE, sale.sale_id, user)
        state = lane.redis.hget(key, USER_STATE_FIELD)
        lane.redis.hset(key, USER_STATE_FIELD, state[:7] + struct.pack(">BH", sku, 65_530))
        assert lane.outcome(make_request(sale, user, f"over-{sku}", [(sku, 6)])) is Outcome.PURCHASE_LIMIT
        assert lane.outcome(make_request(sale, user, f"fits-{sku}", [(sku, 5)])) is Outcome.ACCEPTED
        kept = lane.user(sale.sale_id, user)
        assert kept is not None and kept.purchases == {sku: 65_535}
        lane.redis.delete(key)


def test_a_batch_mixes_sales(lane: LaneClient, sale: SaleDefinition, user: UUID) -> None:
    paused = make_sale(state=LaneSaleState.PAUSED)
    unknown = make_sale()
    lane.load(paused, [Stock.fresh(5)])
    requests = [make_request(each, user, "key") for each in (unknown, sale, paused, unknown, sale)]
    _, answers = lane.reserve(requests)
    assert outcomes(answers) == [
        Outcome.STALE, Outcome.ACCEPTED, Outcome.NOT_OPEN, Outcome.STALE, Outcome.REPLAYED,
    ]  # fmt: skip


def test_the_stream_bound_counts_the_batch_itself(lane: LaneClient, sale: SaleDefinition) -> None:
    requests = [make_request(sale, ids.new_uuid7(), "key") for _ in range(4)]
    _, answers = lane.reserve(requests, stream_length_max=3)
    assert outcomes(answers) == [Outcome.ACCEPTED] * 3 + [Outcome.STREAM_FULL]
    _, answers = lane.reserve(requests, stream_length_max=3)
    assert outcomes(answers) == [Outcome.REPLAYED] * 3 + [Outcome.STREAM_FULL], "replays come before every refusal"
    assert outcomes(lane.lookup(requests[3:], stream_length_max=3)[1]) == [Outcome.STREAM_FULL]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"state": LaneSaleState.PAUSED}, Outcome.NOT_OPEN),
        ({"state": LaneSaleState.ENDED}, Outcome.ENDED),
        ({"ends_at_ms": LONG_AGO_MS + 1}, Outcome.ENDED),
        ({"state": LaneSaleState.PAUSED, "ends_at_ms": LONG_AGO_MS + 1}, Outcome.ENDED),
        ({"starts_at_ms": FAR_AWAY_MS - 1}, Outcome.NOT_OPEN),
    ],
)
def test_state_and_window_refuse_new_orders_not_replays(
    lane: LaneClient, user: UUID, change: dict[str, int], expected: Outcome
) -> None:
    sale = make_sale()
    lane.load(sale, [Stock.fresh(10)])
    assert lane.outcome(make_request(sale, user, "key")) is Outcome.ACCEPTED
    changed = make_sale(sale_id=sale.sale_id, version=2, **change)  # type: ignore[arg-type]
    assert lane.define(changed) == 1
    now_ms, answers = lane.reserve([make_request(changed, user, "key"), make_request(changed, user, "new")])
    assert outcomes(answers) == [Outcome.REPLAYED, expected]
    to_come = expected is Outcome.NOT_OPEN and changed.starts_at_ms > now_ms
    assert answers[1].argument == (changed.starts_at_ms - now_ms if to_come else 0)
    assert outcomes(lane.reserve([make_request(sale, user, "key")])[1]) == [Outcome.STALE], "the old version"


def test_a_sale_closed_for_recovery_is_stale_for_all(lane: LaneClient, sale: SaleDefinition, user: UUID) -> None:
    assert lane.outcome(make_request(sale, user, "key")) is Outcome.ACCEPTED
    closed = make_sale(sale_id=sale.sale_id, limits=(0, 2, 0), version=2, state=LaneSaleState.CLOSED)
    assert lane.define(closed) == 1
    assert lane.outcome(make_request(closed, user, "key")) is Outcome.STALE


def test_lookup_writes_nothing_and_works_read_only(lane: LaneClient, sale: SaleDefinition, user: UUID) -> None:
    known = make_request(sale, user, "key", [(2, 1)])
    assert lane.outcome(known) is Outcome.ACCEPTED
    requests = [known, make_request(sale, user, "sold out", [(2, 1)])]
    requests += [make_request(sale, ids.new_uuid7(), "stock", [(1, 2)]) for _ in range(2)]
    before = lane.snapshot()
    _, answers = lane.lookup(requests)
    assert outcomes(answers) == [Outcome.REPLAYED, Outcome.SOLD_OUT, Outcome.HAS_STOCK, Outcome.HAS_STOCK]
    keys, args = batch_call(requests)
    read_only = lane.redis.evalsha_ro(LOOKUP.sha, len(keys), *keys, *args)
    assert [type(member) for member in read_only[1:]] == [bytes, int, int, int]
    with pytest.raises(ResponseError, match=r"read-only|write"):
        lane.redis.eval_ro(RESERVE.source, len(keys), *keys, *args)
    assert lane.snapshot() == before


def test_a_reply_that_was_lost_is_given_after_the_sell_out(lane: LaneClient, sale: SaleDefinition, user: UUID) -> None:
    last = make_request(sale, user, "key", [(2, 1)])
    assert lane.outcome(last) is Outcome.ACCEPTED  # this answer is lost
    assert lane.outcome(make_request(sale, ids.new_uuid7(), "key", [(2, 1)])) is Outcome.SOLD_OUT
    for ask in (lane.reserve, lane.lookup):
        _, [again] = ask([make_request(sale, user, "key", [(2, 1)])])
        assert again.outcome is Outcome.REPLAYED and again.record is not None
        assert again.record.order_id == last.order.order_id


@pytest.mark.parametrize("seq", [10**13, 10**14 - 2, 10**14 - 1, 10**14, 10**15, 2**53 - 1000])
def test_sequence_numbers_keep_every_digit(lane: LaneClient, sale: SaleDefinition, seq: int) -> None:
    lane.redis.hset(STATE, "seq", str(seq))
    requests = [make_request(sale, ids.new_uuid7(), "key") for _ in range(3)]
    assert outcomes(lane.reserve(requests)[1]) == [Outcome.ACCEPTED] * 3
    assert list(lane.stream()) == [seq + 1, seq + 2, seq + 3]
    assert lane.state()[b"seq"] == str(seq + 3).encode()


def test_a_sequence_that_went_back_leaves_nothing_half_done(lane: LaneClient, sale: SaleDefinition) -> None:
    assert lane.outcome(make_request(sale, ids.new_uuid7(), "key")) is Outcome.ACCEPTED
    assert lane.outcome(make_request(sale, ids.new_uuid7(), "key")) is Outcome.ACCEPTED
    lane.redis.hset(STATE, "seq", "1")
    before = lane.snapshot()
    with pytest.raises(ResponseError, match=r"^CORRUPT the stream refused 2:"):
        lane.reserve([make_request(sale, ids.new_uuid7(), "key") for _ in range(5)])
    assert lane.snapshot() == before


def corrupt_cases() -> list[tuple[str, str | None, str, bytes]]:
    """Case, key (the user's hash if None), field, value."""
    return [
        ("seq", STATE, "seq", b"-1"),
        ("seq text", STATE, "seq", b"many"),
        ("seq fraction", STATE, "seq", b"1.5"),
        ("stock length", STATE, "s:{sale}:0", b"x" * 27),
        ("definition length", STATE, "d:{sale}", b"x" * 31),
        ("definition state", STATE, "d:{sale}", b"\xff" * 29 + b"\x00"),
        ("user", None, "", b"short"),
        ("user's counters", None, "", bytes(8)),
        ("record", None, "key", b"short"),
    ]


@pytest.mark.parametrize(("case", "key", "field", "value"), corrupt_cases())
def test_impossible_state_is_an_error_and_stays_as_it_is(
    lane: LaneClient, sale: SaleDefinition, user: UUID, case: str, key: str | None, field: str, value: bytes
) -> None:
    del case
    lane.redis.hset(
        key or topology.user_key(LANE, sale.sale_id, user), field.replace("{sale}", ids.short(sale.sale_id)), value
    )
    before = lane.snapshot()
    requests = [make_request(sale, ids.new_uuid7(), "key"), make_request(sale, user, "key")]
    for ask in (lane.reserve, lane.lookup):
        with pytest.raises(ResponseError, match=r"^CORRUPT "):
            ask(requests)
    assert lane.snapshot() == before


def test_missing_stock_of_a_known_sale_is_corrupt(lane: LaneClient, sale: SaleDefinition, user: UUID) -> None:
    lane.redis.hdel(STATE, topology.stock_field(sale.sale_id, 0))
    with pytest.raises(ResponseError, match=r"^CORRUPT stock"):
        lane.reserve([make_request(sale, user, "key")])


def malformed(
    request: Request, changes: dict[int, bytes | str | int]
) -> tuple[list[bytes | str], list[bytes | str | int]]:
    keys, args = batch_call([request])
    for at, value in changes.items():
        args[at] = value
    return keys, args


@pytest.mark.parametrize(
    "changes",
    [
        {0: 0}, {0: 65}, {0: 2}, {0: "x"}, {1: 2}, {1: 0}, {2: 0}, {3: 0}, {4: ""},
        {7: ""}, {8: b"\0"}, {8: b"\0\0"}, {8: b"\1\0\1"}, {8: b"\0\0\0"}, {8: b"\0\0\1\0\1"},
        {8: b"\0\3\1"}, {9: b"short"},
    ],
)  # fmt: skip
def test_broken_calls_are_refused_whole(
    lane: LaneClient, sale: SaleDefinition, user: UUID, changes: dict[int, bytes | str | int]
) -> None:
    keys, args = malformed(make_request(sale, user, "key"), changes)
    before = lane.snapshot()
    with pytest.raises(ResponseError, match=r"^MALFORMED "):
        lane.run("reserve-2-2n", keys, args)
    assert lane.snapshot() == before


def test_a_sale_twice_in_a_call_is_refused(lane: LaneClient, sale: SaleDefinition, user: UUID) -> None:
    """Each of the two would sell the same stock."""
    keys, args = batch_call([make_request(sale, user, "key"), make_request(sale, ids.new_uuid7(), "key")])
    args[1:2] = [2]
    args[7:7] = args[5:7]
    before = lane.snapshot()
    with pytest.raises(ResponseError, match=r"^MALFORMED a sale twice"):
        lane.run("reserve-2-2n", keys, args)
    assert lane.snapshot() == before


def test_a_full_batch_of_distinct_lines_and_users(lane: LaneClient) -> None:
    """The widest call: 64 requests of 8 lines over 200 SKUs."""
    sale = make_sale(limits=(0,) * 200)
    lane.load(sale, [Stock.fresh(1000)] * 200)
    requests = [
        make_request(sale, ids.new_uuid7(), "k" * 64, [((at * 3 + line) % 200, 1 + line) for line in range(8)])
        for at in range(64)
    ]
    assert outcomes(lane.reserve(requests)[1]) == [Outcome.ACCEPTED] * 64
    assert all(Stock.unpack(v).is_balanced for f, v in lane.state().items() if f.startswith(b"s:"))
    assert sum(Stock.unpack(v).reserved for f, v in lane.state().items() if f.startswith(b"s:")) == 64 * 36
    user_key = topology.user_key(LANE, sale.sale_id, requests[0].order.user_id)
    assert lane.redis.object("encoding", user_key) == b"listpack"


def test_a_full_batch_of_a_sale_each(lane: LaneClient) -> None:
    """64 sales of other epochs, versions, hold times and limits: none is taken for its neighbour."""
    sales = [
        make_sale(limits=(0, 1 + at % 3), epoch=1 + at % 2, version=1 + at % 5, hold_ms=60_000 * (1 + at % 4))
        for at in range(64)
    ]
    for at, sale in enumerate(sales):
        lane.load(sale, [Stock.fresh(3), Stock.fresh(at)])
    sales[5] = replace(sales[5], version=6)  # the belief of one edge, not the lane's state
    requests = [
        make_request(sale, ids.new_uuid7(), "key", [(at % 2, 2), (1 - at % 2, 1)]) for at, sale in enumerate(sales)
    ]
    now_ms, answers = lane.reserve(requests)
    for at, (sale, request, answer) in enumerate(zip(sales, requests, answers, strict=True)):
        of_second = 2 if at % 2 else 1
        expected = (
            Outcome.STALE if at == 5
            else Outcome.PURCHASE_LIMIT if of_second > 1 + at % 3
            else Outcome.ACCEPTED if of_second <= at
            else Outcome.SOLD_OUT
        )  # fmt: skip
        assert answer.outcome is expected, at
        order = lane.order(request.order.order_id)
        assert (order is not None) is (expected is Outcome.ACCEPTED)
        sold = (3 - of_second, of_second) if order else (0, 0)
        assert [lane.stock(sale, index).reserved for index in (0, 1)] == list(sold)
        if order:
            assert (order.epoch, order.expires_at_ms) == (sale.epoch, now_ms + sale.hold_ms)
            assert (order.sale_id, order.lines) == (sale.sale_id, request.order.lines)


# --- rate ---


def test_burst_then_one_per_interval(lane: LaneClient, sale: SaleDefinition, user: UUID) -> None:
    rate = Rate(interval_us=100_000_000, burst=5)
    requests = [make_request(sale, user, f"key-{at}") for at in range(7)]
    now_ms, answers = lane.reserve(requests[:6], rate=rate)
    assert outcomes(answers) == [Outcome.ACCEPTED] * 5 + [Outcome.RATE_LIMITED]
    assert 99_999 <= answers[5].argument <= 100_000, "whole milliseconds, rounded up"
    kept = lane.user(sale.sale_id, user)
    assert kept is not None and 0 <= kept.arrival_us - 500_000_000 - now_ms * 1000 < 1000
    # 250 s later two more are allowed: as if the clock had gone on, the arrival time is set back.
    key = topology.user_key(LANE, sale.sale_id, user)
    state = lane.redis.hget(key, USER_STATE_FIELD)
    lane.redis.hset(key, USER_STATE_FIELD, (kept.arrival_us - 250_000_000).to_bytes(7, "big") + state[7:])
    _, answers = lane.reserve([make_request(sale, user, f"later-{at}") for at in range(3)], rate=rate)
    assert outcomes(answers) == [Outcome.ACCEPTED] * 2 + [Outcome.RATE_LIMITED]
    assert 48_000 < answers[2].argument <= 50_000


def test_a_refusal_costs_no_rate_and_the_wait_is_at_least_a_millisecond(
    lane: LaneClient, sale: SaleDefinition, user: UUID
) -> None:
    rate = Rate(interval_us=1_000_000_000, burst=1)
    for _ in range(3):
        assert lane.outcome(make_request(sale, user, "none", [(2, 2)]), rate=rate) is Outcome.SOLD_OUT
    assert lane.outcome(make_request(sale, user, "key"), rate=rate) is Outcome.ACCEPTED
    assert lane.outcome(make_request(sale, user, "other"), rate=rate) is Outcome.RATE_LIMITED
    assert lane.outcome(make_request(sale, user, "key"), rate=rate) is Outcome.REPLAYED
    # An interval of one microsecond in a batch: the wait is rounded up to 1 ms.
    tiny = Rate(interval_us=1, burst=1)
    _, answers = lane.reserve([make_request(sale, ids.new_uuid7(), "key")], rate=tiny)
    fast = ids.new_uuid7()
    _, answers = lane.reserve([make_request(sale, fast, "key-1"), make_request(sale, fast, "key-2")], rate=tiny)
    assert answers[1] == Answer(Outcome.RATE_LIMITED, 1)


def test_an_idle_user_gains_no_more_than_the_burst(lane: LaneClient, sale: SaleDefinition, user: UUID) -> None:
    rate = Rate(interval_us=100_000_000, burst=3)
    assert lane.outcome(make_request(sale, user, "long ago"), rate=rate) is Outcome.ACCEPTED
    key = topology.user_key(LANE, sale.sale_id, user)
    lane.redis.hset(key, USER_STATE_FIELD, bytes(6) + struct.pack(">BBH", 1, 0, 1))
    _, answers = lane.reserve([make_request(sale, user, f"key-{at}") for at in range(4)], rate=rate)
    assert outcomes(answers) == [Outcome.ACCEPTED] * 3 + [Outcome.RATE_LIMITED]


def test_rate_is_per_sale_and_user(lane: LaneClient, sale: SaleDefinition, user: UUID) -> None:
    other = make_sale()
    lane.load(other, [Stock.fresh(10)])
    rate = Rate(interval_us=1_000_000_000, burst=1)
    requests = [make_request(sale, user, "key"), make_request(other, user, "key"), make_request(sale, user, "key-2")]
    assert outcomes(lane.reserve(requests, rate=rate)[1]) == [
        Outcome.ACCEPTED, Outcome.ACCEPTED, Outcome.RATE_LIMITED,
    ]  # fmt: skip


def test_wrong_types_do_nothing(lane: LaneClient, sale: SaleDefinition, script_redis: redis.Redis) -> None:
    """A key of another type anywhere is an error before the first write."""
    for at, user in enumerate([ids.new_uuid7(), ids.new_uuid7()]):
        spoiled = STREAM if at else topology.user_key(LANE, sale.sale_id, user)
        script_redis.set(spoiled, "text")
        before = lane.snapshot()
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            lane.reserve([make_request(sale, ids.new_uuid7(), "key"), make_request(sale, user, "key")], rate=FREE_RATE)
        assert lane.snapshot() == before
        script_redis.delete(spoiled)


# --- bounds of one user ---

RECORDS_MAX = 1000  # of `decide.lua`


def test_a_clock_that_went_back_locks_no_one_out(lane: LaneClient, sale: SaleDefinition, user: UUID) -> None:
    """The arrival time is never further ahead than after a burst, so the wait is at most one interval."""
    rate = Rate(interval_us=1_000_000, burst=3)
    assert lane.outcome(make_request(sale, user, "before"), rate=rate) is Outcome.ACCEPTED
    key = topology.user_key(LANE, sale.sale_id, user)
    state = lane.redis.hget(key, USER_STATE_FIELD)
    hour_ahead_us = int.from_bytes(state[:7], "big") + 3_600_000_000
    lane.redis.hset(key, USER_STATE_FIELD, hour_ahead_us.to_bytes(7, "big") + state[7:])
    _, answers = lane.reserve([make_request(sale, user, "after")], rate=rate)
    assert answers[0] == Answer(Outcome.RATE_LIMITED, 1000)


def test_records_of_one_user_are_bounded(lane: LaneClient, user: UUID) -> None:
    """Ordering and cancelling in a loop grew Redis without a bound: a cancelled order leaves its record."""
    sale = make_sale(limits=(0,))
    lane.load(sale, [Stock.fresh(10)])
    order = make_request(sale, user, "first")
    assert lane.outcome(order) is Outcome.ACCEPTED
    key = topology.user_key(LANE, sale.sale_id, user)
    record = next(value for field, value in lane.redis.hgetall(key).items() if field != USER_STATE_FIELD)
    lane.redis.hset(key, mapping={b"key%d" % place: record for place in range(RECORDS_MAX - 1)})
    assert lane.redis.hlen(key) == RECORDS_MAX + 1, "the records and the state"
    for request in (make_request(sale, user, "more"), make_request(sale, user, "again")):
        assert lane.outcome(request) is Outcome.PURCHASE_LIMIT
        _, answers = lane.lookup([request])
        assert outcomes(answers) == [Outcome.PURCHASE_LIMIT]
    assert lane.outcome(order) is Outcome.REPLAYED
    assert lane.outcome(make_request(sale, ids.new_uuid7(), "another user")) is Outcome.ACCEPTED
