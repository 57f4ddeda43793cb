"""The micro-batcher without a connection: what leaves when, what a reply does, what is lost and what is not."""

from __future__ import annotations

import asyncio
import json
import time
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain import topology
from domain.orders import RECORD_SINCE_MS, OrderEntry, OrderLine, OrderStatus, decode_entry
from domain.sales import pack_edition
from hotpath.counters import Verdict
from hotpath.tickets import Ticket
from tests.hotpath.making import LOOKUP_SHA, NOW_MS, RESERVE_SHA, Call, Peer, make_sale, make_ticket
from tests.reference import resp

FAR_NS = 2**62


def entry_of(order: bytes) -> OrderEntry:
    """The order of a request, as the shard writer would read it."""
    head = b"\x02\x00" + b"\x00\x01" + bytes(4 + 6 + 6 + 6)
    return decode_entry(head + order)


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


async def test_accepted_answer_is_the_contract_s() -> None:
    peer, sale = Peer(), make_sale()
    peer.connect()
    ticket = make_ticket(sale, lines=[(1, 2), (0, 3)])
    peer.batcher.submit(ticket)
    (call,) = peer.calls()
    peer.receive(call.accepted())
    assert await ticket == Verdict.ACCEPTED
    assert not ticket.is_replayed
    assert json.loads(ticket.answer_body()) == {
        "order_id": str(UUID(bytes=ticket.order_id)),
        "sale_id": str(UUID(bytes=sale.sale_id)),
        "status": "reserved",
        "items": [
            {"sku": "SKU-2", "quantity": 2, "unit_price_minor": 5},
            {"sku": "SKU-1", "quantity": 3, "unit_price_minor": 1999},
        ],
        "total_minor": 6007,
        "currency": "EUR",
        "reserved_at": "2023-11-14T22:13:20.123Z",
        "expires_at": "2023-11-14T22:23:20.123Z",
    }
    assert call.orders[0][:16] == ticket.order_id


async def test_what_arrives_meanwhile_forms_the_next_batch() -> None:
    peer, sale = Peer(batch_size_max=4, batches_in_flight_max=2), make_sale()
    peer.connect()
    tickets = [make_ticket(sale, key=str(i)) for i in range(12)]
    peer.batcher.submit(tickets[0])
    (first,) = peer.calls()
    for ticket in tickets[1:4]:
        peer.batcher.submit(ticket)
    assert peer.calls() == []  # not a full batch: it waits for the one on the wire
    for ticket in tickets[4:]:
        peer.batcher.submit(ticket)
    (second,) = peer.calls()  # full: it may overlap
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
    assert peer.wakes == 1  # a batch is on the wire: its reply will make room


def test_full_queue_refuses_at_once() -> None:
    peer, sale = Peer(queue_length_max=3), make_sale()
    tickets = [make_ticket(sale) for _ in range(4)]
    assert [peer.batcher.submit(ticket) for ticket in tickets] == [True, True, True, False]
    assert tickets[3].verdict == Verdict.OVERLOADED
    assert peer.batcher.queued == 3


async def test_no_more_wait_than_are_answered_in_half_a_deadline() -> None:
    """Four orders each 100 ms and a deadline of 2 s: forty may wait. Nobody waits: the bound is the setting's again."""
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
    """Four orders each 300 ms and a deadline of 3 s: twenty may wait."""
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
    peer.receive(call.accepted())  # too late: nothing changes, nothing breaks
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
    assert peer.loads == 4  # it may be another server
    # The first attempt of the first order had run: its own id comes back, so it is no replay to the client.
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


async def test_replay_shows_the_first_order() -> None:
    peer, sale = Peer(), make_sale()
    ticket = make_ticket(sale, lines=[(0, 1), (1, 2)])
    peer.connect()
    peer.batcher.submit(ticket)
    (call,) = peer.calls()
    first = UUID(int=7).bytes
    peer.receive(call.answer(first + (NOW_MS - 60_000 - RECORD_SINCE_MS).to_bytes(5, "big") + bytes([1, 2, 0, 1])))
    assert ticket.verdict == Verdict.REPLAYED
    assert ticket.is_replayed
    body = json.loads(ticket.answer_body())
    assert body["order_id"] == str(UUID(bytes=first))
    assert [item["sku"] for item in body["items"]] == ["SKU-2", "SKU-1"]
    assert body["reserved_at"] == "2023-11-14T22:12:20.123Z"


async def test_noscript_loads_and_resubmits() -> None:
    peer, sale = Peer(), make_sale()
    tickets = [make_ticket(sale, key=str(i)) for i in range(3)]
    peer.connect()
    for ticket in tickets:
        peer.batcher.submit(ticket)
    (call,) = peer.calls()
    peer.receive(b"-NOSCRIPT No matching script.\r\n")
    (again,) = peer.calls()
    assert peer.loads == 4
    assert again.words == call.words
    peer.receive(again.accepted())
    assert all(ticket.verdict == Verdict.ACCEPTED for ticket in tickets)


async def test_not_run_and_past_its_deadline_is_not_unknown() -> None:
    peer, sale = Peer(), make_sale()
    ticket = make_ticket(sale)
    peer.connect()
    peer.batcher.submit(ticket)
    peer.calls()
    peer.receive(b"-LOADING Redis is loading the dataset in memory\r\n")
    assert peer.calls() == []  # a pause, so that a server that is loading is not hammered
    peer.wakes = 0
    peer.batcher.sweep(time.monotonic_ns() + 200_000_000)
    assert peer.wakes == 1
    peer.batcher.sweep(FAR_NS)
    assert ticket.verdict == Verdict.OVERLOADED


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", Verdict.OVERLOADED),
        ("MISCONF Errors writing to the AOF file", Verdict.UNAVAILABLE),
        ("READONLY You can't write against a read only replica.", Verdict.UNAVAILABLE),
        ("CORRUPT stock of a SKU", Verdict.UNAVAILABLE),
    ],
)
async def test_error_replies(error: str, verdict: Verdict) -> None:
    peer, sale = Peer(), make_sale()
    ticket = make_ticket(sale)
    peer.connect()
    peer.batcher.submit(ticket)
    peer.calls()
    peer.receive(f"-{error}\r\n".encode())
    assert ticket.verdict == verdict


async def test_refusals_carry_their_argument() -> None:
    peer, sale = Peer(), make_sale()
    tickets = [make_ticket(sale, key=str(i)) for i in range(3)]
    peer.connect()
    for ticket in tickets:
        peer.batcher.submit(ticket)
    (call,) = peer.calls()
    peer.receive(call.answer(1234 * 16 + 6, 5, 60_000 * 16 + 4))
    assert [(Verdict(t.verdict).name, t.argument) for t in tickets] == [
        ("RATE_LIMITED", 1234),
        ("ENDED", 0),
        ("NOT_OPEN", 60_000),
    ]


async def test_crowd_goes_by_lookup_and_never_holds_up_an_order() -> None:
    peer, sale = Peer(batch_size_max=2, batches_in_flight_max=1), make_sale()
    peer.connect()
    peer.batcher.submit(make_ticket(sale))
    (call,) = peer.calls()
    peer.receive(call.answer(8))
    assert sale.is_sold_out(0)
    crowd = [make_ticket(sale, key=str(i)) for i in range(7)]
    for ticket in crowd:
        peer.batcher.submit(ticket)
    buyer = make_ticket(sale, lines=[(1, 1)])
    peer.batcher.submit(buyer)
    reserve, lookup = peer.calls()  # both at once: each kind has room of its own
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


async def test_sold_out_order_of_two_lines_blames_neither() -> None:
    peer, sale = Peer(), make_sale()
    peer.connect()
    peer.batcher.submit(make_ticket(sale, lines=[(0, 1), (1, 1)]))
    peer.receive(peer.calls()[0].answer(8))
    assert not sale.is_sold_out(0)
    assert not sale.is_sold_out(1)


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


async def test_lanes_take_turns() -> None:
    peer = Peer(batch_size_max=2, batches_in_flight_max=1)
    sales = [make_sale(lanes=[lane]) for lane in (0, 1, 2)]
    peer.connect()
    for sale in sales:
        for number in range(4):
            peer.batcher.submit(make_ticket(sale, key=str(number)))
    seen = []
    while calls := peer.calls():
        (call,) = calls
        seen.append(call.keys[0])
        assert all(key.startswith(call.keys[0].partition(b":")[0]) for key in call.keys)
        peer.receive(call.accepted())
    assert len(seen) == 6
    assert set(seen[:3]) == set(seen[3:]) and len(set(seen)) == 3


async def test_a_lane_with_hardly_an_order_costs_a_busy_one_few_round_trips() -> None:
    """Fifteen full batches to one small one, and the small one is not forgotten: it holds what has gathered meanwhile."""
    peer = Peer(batch_size_max=4, batches_in_flight_max=1)
    busy, quiet = make_sale(lanes=[0]), make_sale(lanes=[1])
    peer.connect()
    quiet_key = topology.lane_state_key(1).encode()
    submitted = 0
    sizes = []
    for turn in range(48):
        while submitted < 4 * (turn + 2):
            peer.batcher.submit(make_ticket(busy, key=str(submitted)))
            submitted += 1
        if turn % 8 == 0:
            peer.batcher.submit(make_ticket(quiet, key=str(turn)))
        (call,) = peer.calls()
        sizes.append((call.keys[0] == quiet_key, call.size))
        peer.receive(call.accepted())
    small = [size for is_small, size in sizes if is_small]
    assert small == [2, 2, 2]
    assert [size for is_small, size in sizes if not is_small] == [4] * 45


async def test_lanes_with_less_than_a_batch_take_turns_too() -> None:
    peer = Peer(batch_size_max=4, batches_in_flight_max=1, queue_length_max=300)
    busy, *quiet = [make_sale(lanes=[lane]) for lane in range(4)]
    peer.connect()
    for number in range(4 * 48):
        peer.batcher.submit(make_ticket(busy, key=str(number)))
    for sale in quiet:
        peer.batcher.submit(make_ticket(sale))
    small = []
    for _ in range(48):
        (call,) = peer.calls()
        if call.size < 4:
            small.append(call.keys[0].decode())
        peer.receive(call.accepted())
    assert small == [topology.lane_state_key(lane) for lane in (1, 2, 3)]


async def test_a_further_batch_is_worth_its_round_trip_in_its_own_lane() -> None:
    peer = Peer(batch_size_max=16, batches_in_flight_max=2, batch_size_early=4)
    first, busy, quiet = [make_sale(lanes=[lane]) for lane in range(3)]
    peer.connect()
    peer.batcher.submit(make_ticket(first))
    (alone,) = peer.calls()
    for number in range(3):
        peer.batcher.submit(make_ticket(busy, key=str(number)))
        peer.batcher.submit(make_ticket(quiet, key=str(number)))
    assert peer.calls() == []  # six wait, but no lane has enough
    peer.batcher.submit(make_ticket(busy, key="3"))
    (further,) = peer.calls()
    assert (further.keys[0].decode(), further.size) == (topology.lane_state_key(1), 4)
    peer.receive(alone.accepted())
    assert peer.calls() == []  # one is on the wire still
    peer.receive(further.accepted())
    (last,) = peer.calls()  # alone, at any size
    assert (last.keys[0].decode(), last.size) == (topology.lane_state_key(2), 3)
    peer.receive(last.accepted())


async def test_a_lane_with_hardly_an_order_is_not_forgotten_beside_lanes_with_enough() -> None:
    """There is always a batch on the wire, and never a full one: the sixteenth turn is the small lane's."""
    peer = Peer(batch_size_max=16, batches_in_flight_max=2, batch_size_early=4)
    busy, quiet = make_sale(lanes=[0]), make_sale(lanes=[1])
    quiet_key = topology.lane_state_key(1).encode()
    peer.connect()
    peer.batcher.submit(make_ticket(busy))
    (on_the_wire,) = peer.calls()
    peer.batcher.submit(make_ticket(quiet))
    turns = []
    while quiet_key not in turns:
        for number in range(4):
            peer.batcher.submit(make_ticket(busy, key=f"{len(turns)}-{number}"))
        (further,) = peer.calls()
        turns.append(further.keys[0])
        peer.receive(on_the_wire.accepted())
        on_the_wire = further
    assert len(turns) == 16


def test_home_lane_of_a_striped_sale() -> None:
    peer, sale = Peer(batch_size_max=64, batches_in_flight_max=4, batch_size_early=1), make_sale(lanes=[3, 1, 2])
    peer.connect()
    for number in range(40):
        peer.batcher.submit(make_ticket(sale, key=str(number)))
    calls = peer.calls()
    assert len(calls) == 3
    for call in calls:
        for order in call.orders:
            entry = entry_of(order)
            lane = topology.home_lane(entry.user_id, (3, 1, 2))
            assert call.keys[0].decode() == topology.lane_state_key(lane)
            assert topology.ids.lane_of(entry.order_id) == lane


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_replies_in_any_chunks(data: st.DataObject) -> None:
    peer, sale = Peer(batch_size_max=3, batches_in_flight_max=3), make_sale()
    peer.connect()
    tickets = [make_ticket(sale, key=str(i)) for i in range(9)]
    for ticket in tickets:
        peer.batcher.submit(ticket)
    outcomes = data.draw(st.lists(st.sampled_from([0, 2, 5, 7, 77 * 16 + 6, "record"]), min_size=9, max_size=9))
    record = UUID(int=1).bytes + (NOW_MS - RECORD_SINCE_MS).to_bytes(5, "big") + b"\x00\x01"
    calls = peer.calls()
    wire = b"".join(
        call.answer(*(record if o == "record" else o for o in outcomes[3 * i : 3 * i + 3]))
        for i, call in enumerate(calls)
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=10)))
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        peer.batcher.receive(wire[start:end])
    assert [t.verdict for t in tickets] == [1 if o == "record" else int(o) % 16 for o in outcomes]


async def test_own_commands_keep_their_place() -> None:
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


# ---- waiting ---------------------------------------------------------------------------------------------------------


async def _place(peer: Peer, ticket: Ticket) -> int:
    assert peer.batcher.submit(ticket)
    return await ticket


@pytest.mark.parametrize("eager", [False, True])
async def test_waiters_are_tasks(eager: bool) -> None:
    """`eager`: woken straight from the loop, as data_received does; otherwise from within a task."""
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


async def test_one_damaged_record_refuses_only_its_own_order() -> None:
    peer, sale = Peer(batches_in_flight_max=16), make_sale()
    tickets = [make_ticket(sale, key=str(i)) for i in range(4)]
    peer.connect()
    for ticket in tickets:
        peer.batcher.submit(ticket)
    (together,) = peer.calls()
    assert together.size == 4
    peer.receive(b"-CORRUPT record\r\n")
    for place in range(4):  # each by itself, in their order
        (single,) = peer.calls()
        assert single.orders == [together.orders[place]]
        peer.receive(b"-CORRUPT record\r\n" if place == 1 else single.accepted())
    assert peer.calls() == []
    verdicts = [Verdict(ticket.verdict) for ticket in tickets]
    assert verdicts == [Verdict.ACCEPTED, Verdict.UNAVAILABLE, Verdict.ACCEPTED, Verdict.ACCEPTED]


async def test_deadline_of_an_order_that_came_back_behind_a_younger_one() -> None:
    peer, sale_id = Peer(deadline_ms=1000), UUID(int=9)
    sale = make_sale(sale_id=sale_id)
    peer.connect()
    old = make_ticket(sale)
    peer.batcher.submit(old)
    (stale,) = peer.calls()
    peer.receive(stale.answer(3))
    deadline_ns = time.monotonic_ns() + 1_000_000_000  # not before the one of `old`
    peer.batcher.lost()
    await asyncio.sleep(0.005)  # the clock that deadlines are made from moves on
    young = make_ticket(sale)
    peer.batcher.submit(young)
    again = old.again(make_sale(sale_id=sale_id, version=2))
    peer.batcher.submit(again)
    peer.batcher.sweep(deadline_ns)
    assert again.verdict == Verdict.UNAVAILABLE
    assert young.verdict == Verdict.PENDING
