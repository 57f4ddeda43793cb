"""The scripts on a real Redis against the plain-Python lane: both agree on any requests in any order."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from domain import ids, topology
from domain.orders import OrderEntry, encode_value
from domain.outcomes import Outcome, Transition
from domain.sales import LaneSaleState, SaleDefinition, Stock
from tests.reference.reservations import Answer, Lane, Rate, Request
from tests.reservation.lane import (
    FAR_AWAY_MS,
    FREE_RATE,
    HOUR_MS,
    LANE,
    LONG_AGO_MS,
    STREAM_LENGTH_MAX,
    LaneClient,
    make_request,
    make_sale,
)

SKUS = 3
# So slow that no test lasts until another request is allowed.
SLOW_RATE = Rate(interval_us=1_000_000_000, burst=3)
WINDOWS = {
    "open": (LONG_AGO_MS, FAR_AWAY_MS),
    "to come": (FAR_AWAY_MS - 1, FAR_AWAY_MS),
    "over": (LONG_AGO_MS, LONG_AGO_MS + 1),
}

numbers = st.integers(0, 2)  # sales, users and keys are few, so that they meet
windows = st.sampled_from(["open", "open", "open", "open", "to come", "over"])
states = st.sampled_from(
    [LaneSaleState.RUNNING] * 5 + [LaneSaleState.PAUSED, LaneSaleState.ENDED, LaneSaleState.CLOSED]
)
line_lists = st.lists(
    st.tuples(st.integers(0, SKUS - 1), st.integers(1, 3)), min_size=1, max_size=SKUS, unique_by=lambda line: line[0]
)
beliefs = st.sampled_from([(0, 0)] * 6 + [(1, 0), (0, 1), (0, -1)])  # added to epoch and version
limits = st.tuples(*[st.sampled_from([0, 0, 1, 3, 65_535])] * SKUS)
asked = st.lists(st.tuples(numbers, numbers, numbers, line_lists), min_size=1, max_size=10)


class ReservationMachine(RuleBasedStateMachine):
    """Rules are the requests of edges, staff and workers; the model answers beside Redis."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.lane = LaneClient(self.client)
        self.model = Lane()
        self.sales = [make_sale(limits=(0,) * SKUS) for _ in range(3)]
        self.users = [ids.new_uuid7() for _ in range(3)]
        self.rate = FREE_RATE
        self.stream_length_max = STREAM_LENGTH_MAX

    @initialize(rate=st.sampled_from([FREE_RATE, SLOW_RATE]), stream_length_max=st.sampled_from([STREAM_LENGTH_MAX, 5]))
    def choose_limits(self, rate: Rate, stream_length_max: int) -> None:
        self.rate, self.stream_length_max = rate, stream_length_max
        self._load(0, (0, 2, 3), [5, 5, 1], HOUR_MS)
        self.take_lease("1")

    def _load(self, number: int, per_user: tuple[int, ...], units: Sequence[int], hold_ms: int) -> None:
        sale = make_sale(limits=per_user, hold_ms=hold_ms, sale_id=self.sales[number].sale_id)
        stock = [Stock.fresh(count) for count in units]
        assert self.lane.load(sale, stock) == self.model.load(sale, stock)

    @rule(
        number=numbers,
        per_user=limits,
        units=st.lists(st.integers(0, 8), min_size=SKUS, max_size=SKUS),
        hold_ms=st.sampled_from([0, HOUR_MS, HOUR_MS]),
    )
    def load(self, number: int, per_user: tuple[int, ...], units: list[int], hold_ms: int) -> None:
        self._load(number, per_user, units, hold_ms)

    @rule(
        number=numbers,
        epoch_more=st.sampled_from([0, 0, 0, 1]),
        version_more=st.integers(0, 2),
        state=states,
        window=windows,
    )
    def define(self, number: int, epoch_more: int, version_more: int, state: LaneSaleState, window: str) -> None:
        sale = self._sale(number)
        starts_at_ms, ends_at_ms = WINDOWS[window]
        changed = replace(
            sale,
            epoch=sale.epoch + epoch_more,
            version=sale.version + version_more,
            state=state,
            starts_at_ms=starts_at_ms,
            ends_at_ms=ends_at_ms,
        )
        assert self.lane.define(changed) == self.model.define(changed)

    def _sale(self, number: int) -> SaleDefinition:
        sale = self.sales[number]
        return self.model.definitions.get(sale.sale_id, sale)

    def _requests(
        self, wanted: Sequence[tuple[int, int, int, list[tuple[int, int]]]], believed: Sequence[tuple[int, int]]
    ) -> list[Request]:
        requests = []
        for number, user, key, lines in wanted:
            sale, (epoch_more, version_more) = self._sale(number), believed[number]
            requests.append(
                make_request(
                    sale,
                    self.users[user],
                    f"key-{key}",
                    lines,
                    epoch=sale.epoch + epoch_more,
                    version=sale.version + version_more,
                )
            )
        return requests

    @rule(wanted=asked, believed=st.tuples(beliefs, beliefs, beliefs))
    def reserve(
        self, wanted: list[tuple[int, int, int, list[tuple[int, int]]]], believed: tuple[tuple[int, int], ...]
    ) -> None:
        self._reserve(self._requests(wanted, believed))

    @rule(user=numbers, key=st.integers(3, 1000), lines=line_lists, number=numbers)
    def reserve_with_a_new_key(self, user: int, key: int, lines: list[tuple[int, int]], number: int) -> None:
        self._reserve(self._requests([(number, user, key, lines)], [(0, 0)] * 3))

    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        """Known keys with the same content, its lines in some order, several at once."""
        known = [(place, key) for place, user in self.model.users.items() for key in user.records]
        known = [item for item in known if item[0][0] in self.model.definitions]
        if not known:
            return
        requests = []
        for (sale_id, user_id), key in data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=4)):
            record = self.model.users[sale_id, user_id].records[key]
            lines = data.draw(st.permutations(record.lines))
            requests.append(make_request(self.model.definitions[sale_id], user_id, key, lines))
        self._reserve(requests)

    def _reserve(self, requests: list[Request]) -> None:
        now_ms, answers = self.lane.reserve(requests, rate=self.rate, stream_length_max=self.stream_length_max)
        expected = self.model.reserve(
            requests, now_us=now_ms * 1000, rate=self.rate, stream_length_max=self.stream_length_max
        )
        assert_same_answers(answers, expected)

    @rule(wanted=asked, believed=st.tuples(beliefs, beliefs, beliefs))
    def lookup(
        self, wanted: list[tuple[int, int, int, list[tuple[int, int]]]], believed: tuple[tuple[int, int], ...]
    ) -> None:
        requests = self._requests(wanted, believed)
        now_ms, answers = self.lane.lookup(requests, rate=self.rate, stream_length_max=self.stream_length_max)
        expected = self.model.lookup(
            requests, now_us=now_ms * 1000, rate=self.rate, stream_length_max=self.stream_length_max
        )
        assert_same_answers(answers, expected)

    def _order(self, choice: int) -> OrderEntry:
        """A known order of a sale that is not closed or, for a choice of 0, one that the lane does not know."""
        open_orders = [order for order in self.model.orders.values() if not self.model.is_closed(order.sale_id)]
        known = sorted(open_orders, key=lambda order: order.order_id.int & ((1 << 52) - 1))
        if choice == 0 or not known:
            return make_request(self.sales[0], self.users[0], "unknown").order
        return known[choice % len(known)]

    @rule(choice=st.integers(0, 40), user=st.sampled_from([None, None, None, 0, 1]))
    def cancel(self, choice: int, user: int | None) -> None:
        order = self._order(choice)
        user_id = order.user_id if user is None else self.users[user]
        answer = self.lane.change("cancel-4", order, user_id.bytes)
        assert answer == self.model.cancel(order.order_id, user_id, now_ms=time_of(answer))

    @rule(choice=st.integers(0, 40))
    def settle(self, choice: int) -> None:
        order = self._order(choice)
        answer = self.lane.change("settle-5", order)
        assert answer == self.model.settle(order.order_id, now_ms=time_of(answer))

    @rule(choice=st.integers(0, 40))
    def expire(self, choice: int) -> None:
        order = self._order(choice)
        answer = self.lane.change("expire-4", order)
        assert answer == self.model.expire(order.order_id, now_ms=time_of(answer))

    @rule(choice=st.integers(0, 40))
    def reject(self, choice: int) -> None:
        order = self._order(choice)
        answer = self.lane.change("reject-4", order)
        assert answer == self.model.reject(order.order_id, now_ms=time_of(answer))

    @rule(number=numbers, index=st.integers(0, SKUS), quantity=st.integers(1, 4), key=numbers)
    def restock(self, number: int, index: int, quantity: int, key: int) -> None:
        sale_id = self.sales[number].sale_id
        answer = self.lane.restock(sale_id, index, quantity, f"restock-{key}")
        assert answer == self.model.restock(sale_id, index, quantity, f"restock-{key}")

    @rule(number=st.sampled_from([0, 1, 2, None]), floor_more=st.integers(-2, 3))
    def close(self, number: int | None, floor_more: int) -> None:
        floor = max(0, self.model.seq + floor_more)
        sale = None if number is None else self._sale(number)
        assert self.lane.close(floor, sale) == self.model.close(floor, None if sale is None else sale.sale_id)

    @rule(number=numbers, floor_more=st.integers(-2, 3), restored=st.integers(0, 3))
    def rebuild(self, number: int, floor_more: int, restored: int) -> None:
        """Rebuild to the lane's own state: it then behaves as before, except for orders that were not restored."""
        sale = self.model.definitions.get(self.sales[number].sale_id)
        if sale is None:
            return
        floor = max(0, self.model.seq + floor_more)
        assert self.lane.close(0, sale, mark="m") == self.model.close(0, sale.sale_id)
        stock = [self.model.stock[sale.sale_id, index] for index in range(SKUS)]
        opened = replace(sale, epoch=sale.epoch + 1, version=sale.version + 1, state=LaneSaleState.RUNNING)
        of_sale = [order for order in self.model.orders.values() if order.sale_id == sale.sale_id]
        for place, order in enumerate(of_sale):
            if place % 3 < restored:
                stamped = replace(order, epoch=opened.epoch)
                self.client.set(topology.order_key(order.order_id), encode_value(stamped))
                self.model.restore(stamped)
        assert self.lane.reopen(opened, floor, stock, mark="m") == 1
        self.model.reopen(opened, floor, stock)

    @rule(number=numbers)
    def forget(self, number: int) -> None:
        sale_id = self.sales[number].sale_id
        assert self.lane.forget(sale_id) == self.model.forget(sale_id, now_ms=int(time.time() * 1000))

    @rule(token=st.sampled_from(["1", "1", "2"]))
    def take_lease(self, token: str) -> None:
        self.client.set(topology.lane_lease_key(LANE), token)
        self.model.lease = token

    @rule(token=st.sampled_from(["1", "1", "1", "2"]), confirmed=st.integers(0, 20))
    def trim(self, token: str, confirmed: int) -> None:
        assert self.lane.trim(token, confirmed) == self.model.trim(token, confirmed)

    @invariant()
    def lane_equals_model(self) -> None:
        expected = {topology.definition_field(i).encode(): d.pack_for_lane() for i, d in self.model.definitions.items()}
        for (sale_id, index), stock in self.model.stock.items():
            assert stock.is_balanced
            expected[topology.stock_field(sale_id, index).encode()] = stock.pack()
        state = self.lane.state()
        assert int(state.pop(b"seq", b"0")) == self.model.seq
        assert state == expected
        assert self.lane.stream() == self.model.stream
        for order_id, order in self.model.orders.items():
            assert self.lane.order(order_id) == order
        for sale in self.sales:
            for user_id in self.users:
                self._check_user(sale.sale_id, user_id)

    def _check_user(self, sale_id: UUID, user_id: UUID) -> None:
        expected, user = self.model.users.get((sale_id, user_id)), self.lane.user(sale_id, user_id)
        if expected is None or user is None:
            assert user is expected
            return
        assert abs(user.arrival_us - expected.arrival_us) < 2000  # the model sees whole milliseconds
        assert user.purchases == {index: count for index, count in expected.purchases.items() if count}
        assert user.records == expected.records


def time_of(answer: tuple[Transition, OrderEntry | None]) -> int:
    """When the script ran: from a changed entry, otherwise by our clock (all windows are far away)."""
    transition, entry = answer
    if transition is Transition.DONE:
        assert entry is not None
        return entry.changed_at_ms
    return int(time.time() * 1000)


def assert_same_answers(answers: Sequence[Answer], expected: Sequence[Answer]) -> None:
    for answer, wanted in zip(answers, expected, strict=True):
        if wanted.outcome is Outcome.RATE_LIMITED:  # the wait is known to the millisecond only
            assert answer.outcome is wanted.outcome and abs(answer.argument - wanted.argument) <= 2
        else:
            assert answer == wanted


def test_scripts_equal_the_model(script_redis: redis.Redis) -> None:
    class Machine(ReservationMachine):
        client = script_redis

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
