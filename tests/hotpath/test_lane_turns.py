"""Lanes share the room on the wire: full batches first, and no lane waits for ever."""

from __future__ import annotations

from domain import topology
from tests.hotpath.making import Peer, entry_of, make_sale, make_ticket


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


async def test_a_quiet_lane_costs_a_busy_one_few_round_trips() -> None:
    """One small batch after fifteen full ones; it holds all orders that its lane got meanwhile."""
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
    assert peer.calls() == []  # one is still on the wire
    peer.receive(further.accepted())
    (last,) = peer.calls()  # a lone batch leaves at any size
    assert (last.keys[0].decode(), last.size) == (topology.lane_state_key(2), 3)
    peer.receive(last.accepted())


async def test_a_quiet_lane_gets_its_turn_beside_a_busy_one() -> None:
    """A batch is always on the wire, and none is ever full: the quiet lane has the sixteenth turn."""
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
