"""Tickets: their waiters, and a second try with another version of the sale."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from domain.sales import pack_edition
from hotpath.counters import Verdict
from hotpath.tickets import Ticket
from tests.hotpath.making import Peer, make_sale, make_ticket


async def _place(peer: Peer, ticket: Ticket) -> int:
    assert peer.batcher.submit(ticket)
    return await ticket


@pytest.mark.parametrize("eager", [False, True])
async def test_waiters_are_tasks(eager: bool) -> None:
    """`eager`: woken directly from the loop, as in data_received; otherwise from within a task."""
    peer, sale = Peer(batch_size_max=64), make_sale()
    peer.connect()
    tickets = [make_ticket(sale, key=str(i)) for i in range(10)]
    tasks = [asyncio.create_task(_place(peer, ticket)) for ticket in tickets]
    await asyncio.sleep(0)
    (call,) = peer.calls()
    if eager:
        asyncio.get_running_loop().call_soon(peer.receive, call.accepted())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    else:
        peer.receive(call.accepted())
    assert await asyncio.gather(*tasks) == [Verdict.ACCEPTED] * 10


async def test_a_cancelled_waiter_leaves_the_ticket_to_end() -> None:
    peer, sale = Peer(), make_sale()
    peer.connect()
    ticket = make_ticket(sale)
    task = asyncio.create_task(_place(peer, ticket))
    await asyncio.sleep(0)
    (call,) = peer.calls()
    task.cancel()
    peer.receive(call.accepted())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ticket.verdict == Verdict.ACCEPTED


async def test_a_ticket_has_one_waiter() -> None:
    ticket = make_ticket(make_sale())
    ticket.add_done_callback(print)  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError):
        ticket.add_done_callback(print)  # type: ignore[attr-defined]


async def test_again_keeps_id_and_deadline() -> None:
    peer, sale_id = Peer(), UUID(int=9)
    peer.connect()
    ticket = make_ticket(make_sale(sale_id=sale_id), lines=[(1, 4)])
    peer.batcher.submit(ticket)
    (stale,) = peer.calls()
    peer.receive(stale.answer(3))
    assert ticket.verdict == Verdict.STALE
    other = ticket.again(make_sale(sale_id=sale_id, version=2))
    assert other.verdict == Verdict.PENDING
    peer.batcher.submit(other)
    (call,) = peer.calls()
    assert call.orders == stale.orders
    assert call.arguments[6] == pack_edition(3, 2)
