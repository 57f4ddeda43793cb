"""Orders for SKUs last seen sold out use the read-only lookup, and delay no other order."""

from __future__ import annotations

from hotpath.counters import Verdict
from tests.hotpath.making import LOOKUP_SHA, RESERVE_SHA, Peer, make_sale, make_ticket


async def test_sold_out_orders_use_the_lookup_and_delay_no_other() -> None:
    peer, sale = Peer(batch_size_max=2, batches_in_flight_max=1), make_sale()
    peer.connect()
    peer.batcher.submit(make_ticket(sale))
    (call,) = peer.calls()
    peer.receive(call.answer(8))
    assert sale.is_sold_out(0)
    hopeless = [make_ticket(sale, key=str(i)) for i in range(7)]
    for ticket in hopeless:
        peer.batcher.submit(ticket)
    buyer = make_ticket(sale, lines=[(1, 1)])
    peer.batcher.submit(buyer)
    reserve, lookup = peer.calls()  # both at once: each kind has its own room
    assert (reserve.sha, lookup.sha) == (RESERVE_SHA, LOOKUP_SHA)
    peer.receive(reserve.accepted())
    assert buyer.verdict == Verdict.ACCEPTED
    peer.receive(lookup.answer(8, 8))
    assert peer.batcher.queued == 5


async def test_stock_that_came_back_goes_to_reserve() -> None:
    peer, sale = Peer(), make_sale()
    peer.connect()
    peer.batcher.submit(make_ticket(sale))
    peer.receive(peer.calls()[0].answer(8))
    ticket = make_ticket(sale)
    peer.batcher.submit(ticket)
    (lookup,) = peer.calls()
    peer.receive(lookup.answer(9))
    assert not sale.is_sold_out(0)
    (reserve,) = peer.calls()
    assert (lookup.sha, reserve.sha) == (LOOKUP_SHA, RESERVE_SHA)
    assert lookup.orders == reserve.orders
    peer.receive(reserve.accepted())
    assert ticket.verdict == Verdict.ACCEPTED


async def test_sold_out_order_of_two_lines_marks_neither_sku() -> None:
    peer, sale = Peer(), make_sale()
    peer.connect()
    peer.batcher.submit(make_ticket(sale, lines=[(0, 1), (1, 1)]))
    peer.receive(peer.calls()[0].answer(8))
    assert not sale.is_sold_out(0)
    assert not sale.is_sold_out(1)
