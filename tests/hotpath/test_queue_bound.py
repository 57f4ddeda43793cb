"""The bound of the queue: by its setting, by the pace of Redis, and by its memory."""

from __future__ import annotations

import time

from hotpath.counters import Verdict
from tests.hotpath.making import Peer, make_sale, make_ticket


def test_full_queue_refuses_at_once() -> None:
    peer, sale = Peer(queue_length_max=3), make_sale()
    tickets = [make_ticket(sale) for _ in range(4)]
    assert [peer.batcher.submit(ticket) for ticket in tickets] == [True, True, True, False]
    assert tickets[3].verdict == Verdict.OVERLOADED
    assert peer.batcher.queued == 3


async def test_only_orders_answered_within_half_a_deadline_may_wait() -> None:
    """Four orders per 100 ms and a deadline of 2 s: forty may wait. With an empty queue, the setting is the bound."""
    peer, sale = Peer(batches_in_flight_max=1, queue_length_max=100, deadline_ms=2000), make_sale()
    peer.connect()
    now_ns = time.monotonic_ns()
    for number in range(100):
        assert peer.batcher.submit(make_ticket(sale, key=str(number)))

    def answer_a_batch() -> None:
        (call,) = peer.calls()
        peer.receive(call.accepted())

    peer.batcher.sweep(now_ns)
    for step in range(1, 4):
        answer_a_batch()
        peer.batcher.sweep(now_ns + step * 100_000_000)
    assert peer.batcher.queued == 88
    late = make_ticket(sale)
    assert not peer.batcher.submit(late) and late.verdict == Verdict.OVERLOADED
    while peer.batcher.queued > 39:
        answer_a_batch()
    assert peer.batcher.queued == 36
    assert [peer.batcher.submit(make_ticket(sale)) for _ in range(5)] == [True] * 4 + [False]
    peer.batcher.sweep(now_ns + 350_000_000)  # too soon to measure again
    assert not peer.batcher.submit(make_ticket(sale))
    while peer.batcher.queued:
        answer_a_batch()
    peer.calls()
    peer.batcher.sweep(now_ns + 500_000_000)
    assert [peer.batcher.submit(make_ticket(sale)) for _ in range(101)] == [True] * 100 + [False]


async def test_a_round_trip_longer_than_a_measurement_is_measured_whole() -> None:
    """Four orders per 300 ms and a deadline of 3 s: twenty may wait."""
    peer, sale = Peer(batches_in_flight_max=1, queue_length_max=100, deadline_ms=3000), make_sale()
    peer.connect()
    now_ns = time.monotonic_ns()
    for number in range(50):
        assert peer.batcher.submit(make_ticket(sale, key=str(number)))
    peer.batcher.sweep(now_ns)
    for step in range(1, 10):
        if step % 3 == 0:
            (call,) = peer.calls()
            peer.receive(call.accepted())
        peer.batcher.sweep(now_ns + step * 100_000_000)
    while peer.batcher.queued > 18:
        (call,) = peer.calls()
        peer.receive(call.accepted())
    assert peer.batcher.queued == 18
    assert [peer.batcher.submit(make_ticket(sale)) for _ in range(3)] == [True, True, False]


async def test_a_silent_or_lost_redis_does_not_shorten_the_queue() -> None:
    peer, sale = Peer(batches_in_flight_max=1, queue_length_max=100, deadline_ms=2000), make_sale()
    peer.connect()
    now_ns = time.monotonic_ns()
    for number in range(50):
        peer.batcher.submit(make_ticket(sale, key=str(number)))
    peer.calls()
    for step in range(1, 5):
        peer.batcher.sweep(now_ns + step * 100_000_000)
    assert peer.batcher.submit(make_ticket(sale))
    peer.batcher.lost()
    peer.connect()
    peer.batcher.sweep(now_ns + 500_000_000)
    assert peer.batcher.submit(make_ticket(sale))


def test_memory_high_refuses_new_orders_only() -> None:
    peer, sale = Peer(), make_sale()
    before, after = make_ticket(sale), make_ticket(sale)
    peer.connect()
    peer.batcher.submit(before)
    peer.batcher.refuse(refusing=True)
    assert not peer.batcher.submit(after)
    assert after.verdict == Verdict.OVERLOADED
    (call,) = peer.calls()
    assert call.size == 1
    peer.batcher.refuse(refusing=False)
    assert peer.batcher.submit(make_ticket(sale))


async def test_a_sell_out_crowd_fills_a_bound_of_its_own() -> None:
    """Look-ups at their bound are refused; an order of another SKU is queued, and the reverse."""
    peer, sale = Peer(batches_in_flight_max=1, queue_length_max=3), make_sale()
    peer.connect()
    peer.batcher.submit(make_ticket(sale))
    peer.receive(peer.calls()[0].answer(8))
    assert sale.is_sold_out(0)
    crowd = [make_ticket(sale, key=str(i)) for i in range(5)]
    assert [peer.batcher.submit(ticket) for ticket in crowd] == [True] * 3 + [False] * 2
    assert crowd[3].verdict == Verdict.OVERLOADED
    others = [make_ticket(sale, lines=[(1, 1)], key=f"other-{i}") for i in range(4)]
    assert [peer.batcher.submit(ticket) for ticket in others] == [True] * 3 + [False]
    assert peer.batcher.queued == 6
    reserve, lookup = peer.calls()
    peer.receive(reserve.accepted())
    assert others[0].verdict == Verdict.ACCEPTED
    peer.receive(lookup.answer(8, 8, 8))
    assert peer.batcher.queued == 0


async def test_look_ups_have_a_pace_of_their_own() -> None:
    """Four look-ups per 100 ms and a deadline of 2 s: forty may wait. Orders, not served here, keep their setting."""
    peer, sale = Peer(batches_in_flight_max=1, queue_length_max=100, deadline_ms=2000), make_sale()
    peer.connect()
    peer.batcher.submit(make_ticket(sale))
    peer.receive(peer.calls()[0].answer(8))
    now_ns = time.monotonic_ns()
    for number in range(100):
        assert peer.batcher.submit(make_ticket(sale, key=str(number)))
    peer.batcher.sweep(now_ns)
    for step in range(1, 4):
        (lookup,) = peer.calls()
        peer.receive(lookup.answer(8, 8, 8, 8))
        peer.batcher.sweep(now_ns + step * 100_000_000)
    assert not peer.batcher.submit(make_ticket(sale, key="late"))
    orders = [make_ticket(sale, lines=[(1, 1)], key=f"other-{i}") for i in range(101)]
    assert [peer.batcher.submit(ticket) for ticket in orders] == [True] * 100 + [False]
