"""Deadlines and lost connections: an order is resubmitted, refused, or its outcome is unknown."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

from domain.orders import RECORD_SINCE_MS
from hotpath.counters import Verdict
from tests.hotpath.making import FAR_NS, NOW_MS, Peer, make_sale, make_ticket


async def test_deadline_before_and_after_the_first_byte() -> None:
    peer, sale = Peer(batches_in_flight_max=1, batch_size_max=1), make_sale()
    sent, waiting = make_ticket(sale), make_ticket(sale)
    peer.connect()
    peer.batcher.submit(sent)
    (call,) = peer.calls()
    peer.batcher.submit(waiting)
    assert peer.batcher.sweep(time.monotonic_ns()) == 0
    assert peer.batcher.sweep(FAR_NS) == 2
    assert (sent.verdict, waiting.verdict) == (Verdict.UNKNOWN, Verdict.OVERLOADED)
    peer.receive(call.accepted())  # too late to have an effect
    assert sent.verdict == Verdict.UNKNOWN
    assert peer.batcher.queued == peer.batcher.in_flight == 0


async def test_deadline_without_a_connection() -> None:
    peer, sale = Peer(), make_sale()
    ticket = make_ticket(sale)
    peer.batcher.submit(ticket)
    peer.batcher.sweep(FAR_NS)
    assert ticket.verdict == Verdict.UNAVAILABLE


async def test_lost_connection_resubmits_in_order_with_the_same_ids() -> None:
    peer, sale = Peer(batch_size_max=2, batches_in_flight_max=2), make_sale()
    tickets = [make_ticket(sale, key=str(i)) for i in range(5)]
    peer.connect()
    for ticket in tickets:
        peer.batcher.submit(ticket)
    before = peer.calls()
    peer.batcher.lost()
    assert peer.batcher.queued == 5
    assert peer.calls() == []
    after = peer.connect()
    assert [call.orders for call in after] == [call.orders for call in before]
    assert peer.loads == 4  # another server may lack the scripts
    # The first attempt of the first order has run: its own id comes back, so for the client it is no replay.
    record = before[0].orders[0][:16] + (NOW_MS - 9 - RECORD_SINCE_MS).to_bytes(5, "big") + bytes([0, 1])
    peer.receive(after[0].answer(record, 8) + after[1].accepted())
    assert [Verdict(t.verdict).name for t in tickets] == ["ACCEPTED", "SOLD_OUT", "ACCEPTED", "ACCEPTED", "PENDING"]
    assert not tickets[0].is_replayed
    assert b"22:13:20.114Z" in tickets[0].answer_body()


async def test_lost_and_past_its_deadline_is_unknown() -> None:
    peer, sale = Peer(), make_sale()
    ticket = make_ticket(sale)
    peer.connect()
    peer.batcher.submit(ticket)
    peer.calls()
    peer.batcher.lost()
    peer.batcher.sweep(FAR_NS)
    assert ticket.verdict == Verdict.UNKNOWN


async def test_not_run_and_past_its_deadline_is_not_unknown() -> None:
    peer, sale = Peer(), make_sale()
    ticket = make_ticket(sale)
    peer.connect()
    peer.batcher.submit(ticket)
    peer.calls()
    peer.receive(b"-LOADING Redis is loading the dataset in memory\r\n")
    assert peer.calls() == []  # a pause spares the server while it loads
    peer.wakes = 0
    peer.batcher.sweep(time.monotonic_ns() + 200_000_000)
    assert peer.wakes == 1
    peer.batcher.sweep(FAR_NS)
    assert ticket.verdict == Verdict.OVERLOADED


async def test_deadline_of_an_order_that_came_back_behind_a_younger_one() -> None:
    peer, sale_id = Peer(deadline_ms=1000), UUID(int=9)
    sale = make_sale(sale_id=sale_id)
    peer.connect()
    old = make_ticket(sale)
    peer.batcher.submit(old)
    (stale,) = peer.calls()
    peer.receive(stale.answer(3))
    deadline_ns = time.monotonic_ns() + 1_000_000_000  # not before the deadline of `old`
    peer.batcher.lost()
    await asyncio.sleep(0.005)  # lets the clock of the deadlines advance
    young = make_ticket(sale)
    peer.batcher.submit(young)
    again = old.again(make_sale(sale_id=sale_id, version=2))
    peer.batcher.submit(again)
    peer.batcher.sweep(deadline_ns)
    assert again.verdict == Verdict.UNAVAILABLE
    assert young.verdict == Verdict.PENDING
