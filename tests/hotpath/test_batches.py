"""Batches: when they leave, which orders they hold, and the bytes of a script call."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from domain import topology
from domain.orders import OrderLine, OrderStatus
from hotpath.counters import Verdict
from tests.hotpath.making import RESERVE_SHA, Call, Peer, entry_of, make_sale, make_ticket
from tests.reference import resp


@settings(max_examples=60, deadline=None)
@given(
    orders=st.lists(
        st.tuples(
            st.integers(0, 2),  # sale
            st.lists(
                st.tuples(st.integers(0, 3), st.integers(1, 100)), min_size=1, max_size=4, unique_by=lambda li: li[0]
            ),
            st.text("abc-9", min_size=1, max_size=64) | st.uuids(version=4).map(str),
        ),
        min_size=1,
        max_size=16,
    )
)
def test_call_equals_the_reference(orders: list[tuple[int, list[tuple[int, int]], str]]) -> None:
    peer = Peer(batch_size_max=16)
    items = [(f"SKU-{i}" * (1 + i), 10**i * 7) for i in range(4)]
    sales = [make_sale(items=items, version=v) for v in range(3)]
    peer.connect()
    for number, lines, key in orders:
        assert peer.batcher.submit(make_ticket(sales[number], lines=lines, key=key))
    (call,) = peer.calls()
    places = list(dict.fromkeys(number for number, _, _ in orders))
    entries = [entry_of(order) for order in call.orders]
    for (number, lines, key), entry in zip(orders, entries, strict=True):
        assert entry.sale_id.bytes == sales[number].sale_id
        assert entry.idempotency_key == key
        assert entry.lines == tuple(OrderLine(i, items[i][0], quantity, items[i][1]) for i, quantity in lines)
        assert topology.bucket_of_user(entry.user_id) == topology.ids.bucket_of(entry.order_id)
        assert entry.status is OrderStatus.RESERVED
    assert call.words == resp.script_call(
        RESERVE_SHA, lane=0, interval_us=100_000, burst=20, stream_length_max=1000,
        sales=[resp.Sale(UUID(bytes=sales[n].sale_id), 3, n) for n in places],
        orders=[(places.index(number), entry) for (number, _, _), entry in zip(orders, entries, strict=True)],
    )  # fmt: skip


async def test_orders_that_arrive_meanwhile_form_the_next_batch() -> None:
    peer, sale = Peer(batch_size_max=4, batches_in_flight_max=2), make_sale()
    peer.connect()
    tickets = [make_ticket(sale, key=str(i)) for i in range(12)]
    peer.batcher.submit(tickets[0])
    (first,) = peer.calls()
    for ticket in tickets[1:4]:
        peer.batcher.submit(ticket)
    assert peer.calls() == []  # not a full batch: it waits for the batch on the wire
    for ticket in tickets[4:]:
        peer.batcher.submit(ticket)
    (second,) = peer.calls()  # a full batch may overlap
    assert (first.size, second.size) == (1, 4)
    assert peer.calls() == []  # no room
    peer.receive(first.accepted())
    (third,) = peer.calls()
    peer.receive(second.accepted() + third.accepted())
    (fourth,) = peer.calls()
    peer.receive(fourth.accepted())
    assert [third.size, fourth.size] == [4, 3]
    assert all(ticket.verdict == Verdict.ACCEPTED for ticket in tickets)
    assert peer.batcher.queued == peer.batcher.in_flight == 0


def test_wakes_once_for_many_submits() -> None:
    peer, sale = Peer(), make_sale()
    peer.connect()
    peer.wakes = 0
    for i in range(3):
        peer.batcher.submit(make_ticket(sale, key=str(i)))
    assert peer.wakes == 1
    peer.calls()
    peer.batcher.submit(make_ticket(sale))
    assert peer.wakes == 1  # the reply to the batch on the wire makes room


async def test_two_versions_of_a_sale_never_share_a_call() -> None:
    peer, sale_id = Peer(batches_in_flight_max=2), UUID(int=5)
    old, same, new = (make_sale(sale_id=sale_id, version=v) for v in (1, 1, 2))
    peer.connect()
    for number, sale in enumerate((old, same, new, old)):
        peer.batcher.submit(make_ticket(sale, key=str(number)))
    (first,) = peer.calls()
    assert (first.size, first.arguments[1]) == (2, b"1")
    peer.receive(first.accepted())
    (second,) = peer.calls()
    assert (second.size, second.arguments[7]) == (1, b"2")
    peer.receive(second.answer(3))
    assert peer.calls()[0].size == 1


async def test_commands_of_the_link_keep_their_place() -> None:
    peer, sale, replies = Peer(), make_sale(), []
    peer.connect()
    ticket = make_ticket(sale)
    peer.batcher.submit(ticket)
    peer.batcher.call([b"PING"], replies.append)
    commands, _ = resp.decode(peer.batcher.output())
    assert commands[0] == [b"PING"]
    call = Call(RESERVE_SHA, commands[1])  # type: ignore[arg-type]
    peer.receive(b"+PONG\r\n" + call.accepted())
    assert replies == [b"PONG"]
    assert ticket.verdict == Verdict.ACCEPTED
