"""A sale of three lanes on a real Redis against three plain-Python lanes, with transfers interrupted and repeated.

No step of a transfer, repeated at any time by anyone, makes or loses a unit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from domain import ids, topology
from domain.orders import OrderEntry, encode_value
from domain.outcomes import Outcome
from domain.sales import LEFT_UNKNOWN, Stock, spread
from reservation.transfers import decode_records
from tests.reference.reservations import Lane
from tests.reservation.lane import FREE_RATE, STREAM_LENGTH_MAX, LaneClient, make_request, make_sale
from tests.reservation.test_reservation_machine import assert_same_answers, time_of

LANES = (1, 2, 3)
SKUS = 2

places = st.integers(0, len(LANES) - 1)
indices = st.integers(0, SKUS - 1)
line_lists = st.lists(st.tuples(indices, st.integers(1, 4)), min_size=1, max_size=SKUS, unique_by=lambda line: line[0])


class TransfersMachine(RuleBasedStateMachine):
    """`transfers` has every transfer that ever began, as (SKU index, source, destination, number, units)."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.lanes = [LaneClient(self.client, number) for number in LANES]
        self.models = [Lane() for _ in LANES]
        self.sale = make_sale(limits=(0,) * SKUS, lanes=LANES)
        self.given = [0] * SKUS
        self.transfers: list[tuple[int, int, int, int, int]] = []
        self.seen: list[tuple[int, int, int, int]] = []  # place, SKU index, returns, units left in all lanes
        self.keys = 0

    @initialize(units=st.lists(st.integers(0, 6), min_size=SKUS, max_size=SKUS))
    def load(self, units: list[int]) -> None:
        self.given = list(units)
        for place in range(len(LANES)):
            shares = [spread(count, lanes=len(LANES))[place] for count in units]
            stock = [Stock.fresh(share, lanes=len(LANES)) for share in shares]
            assert self.lanes[place].load(self.sale, stock) == self.models[place].load(self.sale, stock)

    @rule(place=places, wanted=st.lists(line_lists, min_size=1, max_size=4))
    def reserve(self, place: int, wanted: list[list[tuple[int, int]]]) -> None:
        requests = []
        for lines in wanted:
            self.keys += 1
            user = ids.new_uuid7()
            requests.append(make_request(self.sale, user, f"key-{self.keys}", lines, lane=LANES[place]))
        looked_ms, looked = self.lanes[place].lookup(requests)
        more: dict[str, Any] = {"rate": FREE_RATE, "stream_length_max": STREAM_LENGTH_MAX}
        assert_same_answers(looked, self.models[place].lookup(requests, now_us=looked_ms * 1000, **more))
        left = [self._unsold(index) for index in range(SKUS)]
        now_ms, answers = self.lanes[place].reserve(requests)
        assert_same_answers(answers, self.models[place].reserve(requests, now_us=now_ms * 1000, **more))
        if answers[0].outcome is Outcome.SOLD_OUT and self._is_bound_right(place):
            assert any(left[index] < quantity for index, quantity in wanted[0]), "units were left somewhere"

    def _is_bound_right(self, place: int) -> bool:
        """Whether no units came back to other lanes since the lane was told how many are left."""
        for index in range(SKUS):
            there = self.models[place].stock[self.sale.sale_id, index].elsewhere
            assert there is not None
            if there.left < min(LEFT_UNKNOWN, self._unsold(index)):
                return False
        return True

    def _unsold(self, index: int) -> int:
        return sum(model.stock[self.sale.sale_id, index].unsold for model in self.models)

    @rule(
        place=places,
        choice=st.integers(0, 20),
        change=st.sampled_from(["cancel-4", "cancel-4", "settle-5", "reject-4"]),
    )
    def change(self, place: int, choice: int, change: str) -> None:
        orders = sorted(self.models[place].orders.values(), key=lambda order: order.idempotency_key)
        if not orders:
            return
        order, model, lane = orders[choice % len(orders)], self.models[place], self.lanes[place]
        if change == "cancel-4":
            answer = lane.cancel(order)
            assert answer == model.cancel(order.order_id, order.user_id, now_ms=time_of(answer))
            return
        answer = lane.change(change, order)
        applied = model.settle if change == "settle-5" else model.reject
        assert answer == applied(order.order_id, now_ms=time_of(answer))

    @rule(index=indices, units=st.integers(1, 4), first=places, lanes=st.integers(1, len(LANES)))
    def restock(self, index: int, units: int, first: int, lanes: int) -> None:
        """Over all lanes, or over some: a process died in between and repeats it now."""
        self.keys += 1
        shares = spread(units, lanes=len(LANES), first=first)
        for reached in (lanes, len(LANES)):
            for place in range(reached):
                args = (self.sale.sale_id, index, shares[place], f"restock-{self.keys}")
                assert self.lanes[place].restock(*args) == self.models[place].restock(*args)
        self.given[index] += units

    @rule(
        index=indices,
        source=places,
        destination=places,
        units=st.integers(1, 5),
        ahead=st.sampled_from([0, 0, 0, 1, -1]),
    )
    def lend(self, index: int, source: int, destination: int, units: int, ahead: int) -> None:
        if source == destination:
            return
        known = self.models[source].lent.get((self.sale.sale_id, index, LANES[destination]), (0, 0))
        number = max(1, known[0] + 1 + ahead)
        args = (self.sale, index, LANES[destination], number, units)
        lent = self.lanes[source].lend(*args)
        assert lent == self.models[source].lend(*args)
        if lent > 0:
            self.transfers.append((index, source, destination, number, lent))

    def _transfer(self, choice: int) -> tuple[int, int, int, int, int] | None:
        return self.transfers[-1 - choice % len(self.transfers)] if self.transfers else None

    @rule(choice=st.integers(0, 8))
    def credit(self, choice: int) -> None:
        """Any transfer that ever began: the last ones, or one that ended long ago, by a paused process."""
        if (transfer := self._transfer(choice)) is None:
            return
        index, source, destination, number, units = transfer
        args = (self.sale, index, LANES[source], number, units)
        assert self.lanes[destination].credit(*args) == self.models[destination].credit(*args)

    @rule(choice=st.integers(0, 8))
    def clear(self, choice: int) -> None:
        if (transfer := self._transfer(choice)) is None:
            return
        index, source, destination, number, _ = transfer
        if self.models[destination].credited.get((self.sale.sale_id, index, LANES[source]), 0) < number:
            return  # a step follows the one before
        args = (self.sale, index, LANES[destination], number)
        assert self.lanes[source].clear(*args) == self.models[source].clear(*args)

    @rule()
    def look(self) -> None:
        """The rebalancer reads all lanes."""
        self.seen = []
        for place in range(len(LANES)):
            for index in range(SKUS):
                there = self.models[place].stock[self.sale.sale_id, index].elsewhere
                assert there is not None
                self.seen.append((place, index, there.returns, min(LEFT_UNKNOWN, self._unsold(index))))

    @rule()
    def tell_left(self) -> None:
        """The rebalancer tells the lanes what it saw, perhaps some time ago."""
        for place, index, returns, left in self.seen:
            args = (self.sale, index, returns, left)
            assert self.lanes[place].left(*args) == self.models[place].left(*args)

    @rule()
    def look_and_tell(self) -> None:
        self.look()
        self.tell_left()

    @rule(closed=places)
    def rebuild(self, closed: int) -> None:
        """A lane loses the sale; all lanes are rebuilt under a new epoch, from the units of paid and held orders."""
        mark = "m"
        self.lanes[closed].close(0, self.sale)
        opened = replace(self.sale, epoch=self.sale.epoch + 1, version=self.sale.version + 1)
        for place, lane in enumerate(self.lanes):
            lane.close(0, self.sale, mark=mark)
            self.models[place].close(0, self.sale.sale_id)
        old = self.transfers[-1] if self.transfers else None
        for place, model in enumerate(self.models):
            stock = []
            for index in range(SKUS):
                counters = model.stock[self.sale.sale_id, index]
                held = counters.reserved + counters.paid
                available = spread(self._left_after_rebuild(index), lanes=len(LANES))[place]
                fresh = Stock.fresh(available, lanes=len(LANES))
                stock.append(replace(fresh, reserved=counters.reserved, paid=counters.paid, allotted=available + held))
            for order in model.orders.values():
                self._stamp(place, order, opened.epoch)
            assert self.lanes[place].reopen(opened, 0, stock, mark=mark) == 1
            self.models[place].reopen(opened, 0, stock)
            self.models[place].lent.clear()
            self.models[place].credited.clear()
        for index in range(SKUS):
            self.given[index] = sum(model.stock[self.sale.sale_id, index].allotted for model in self.models)
        before, self.sale, self.transfers, self.seen = self.sale, opened, [], []
        if old is not None:
            index, source, destination, number, units = old
            assert self.lanes[destination].credit(before, index, LANES[source], number, units) == -1
            assert self.lanes[source].clear(before, index, LANES[destination], number) == -1
            assert self.lanes[source].lend(before, index, LANES[destination], number + 1, 1) == -1
            assert self.lanes[source].left(before, index, 0, 0) == -1

    def _left_after_rebuild(self, index: int) -> int:
        held = 0
        for model in self.models:
            counters = model.stock[self.sale.sale_id, index]
            held += counters.reserved + counters.paid
        return self.given[index] - held

    def _stamp(self, place: int, order: OrderEntry, epoch: int) -> None:
        stamped = replace(order, epoch=epoch)
        self.client.set(topology.order_key(order.order_id), encode_value(stamped))
        self.models[place].restore(stamped)

    @invariant()
    def no_unit_is_made_or_lost(self) -> None:
        for index in range(SKUS):
            stocks = [model.stock[self.sale.sale_id, index] for model in self.models if model.stock]
            total = Stock.total(stocks)
            if not stocks:
                continue
            in_transit = total.lent - total.borrowed
            assert in_transit >= 0
            assert self.given[index] == total.available + in_transit + total.reserved + total.paid + total.rejected
            assert all(stock.is_balanced for stock in stocks)

    @invariant()
    def lanes_equal_models(self) -> None:
        for lane, model in zip(self.lanes, self.models, strict=True):
            for (sale_id, index), stock in model.stock.items():
                field = topology.stock_field(sale_id, index)
                assert Stock.unpack(self.client.hget(topology.lane_state_key(lane.number), field)) == stock
            fields = self.client.hgetall(topology.transfers_key(lane.number, self.sale.sale_id))
            records = decode_records(fields)
            assert records.lent == without_sale(model.lent) and records.credited == without_sale(model.credited)
            assert lane.stream() == model.stream


def without_sale(records: dict[tuple[UUID, int, int], Any]) -> dict[tuple[int, int], Any]:
    return {(index, lane): value for (_, index, lane), value in records.items()}


def test_transfers_make_and_lose_no_unit(script_redis: redis.Redis) -> None:
    class Machine(TransfersMachine):
        client = script_redis

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
