"""The plan of a batch against a plain model: any order of arrival, any repetition, any split into batches."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from uuid import UUID

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.messages import SequencedEntry
from domain.orders import OrderStatus, encode_entry
from runtime.postgres import columns
from tests.fixtures.fix_databases import Databases
from tests.workers.making import TOPOLOGY, Maker, later
from tests.workers.writing import incoming
from workers.shard_writer.plan import (
    Effect,
    Grant,
    Incoming,
    PoisonEntry,
    Quota,
    RaiseGrants,
    ReadDeadLettered,
    ReadShard,
    ShardState,
    SkuKey,
    Stored,
    StoreResult,
    Write,
    apply_changes,
    holds_units,
    make_plan,
    needs,
    read_entry,
    sku_keys,
    storing,
)

SALE = UUID("01890000-0000-7000-8000-000000000001")


class Shard:
    """A model of a shard's rows; `stock` bounds its grants."""

    def __init__(self, stock: int) -> None:
        self.stock = stock
        self.rows: dict[int, Stored] = {}
        self.held: dict[int, int] = {}
        self.quotas: dict[SkuKey, Quota] = {}
        self.noted: list[tuple[int, int]] = []

    def write(self, entries: list[SequencedEntry]) -> list[SequencedEntry]:
        """One transaction; the entries that wait."""
        orders = incoming(entries)
        for key in sku_keys(orders):
            self.quotas.setdefault(key, Quota(0, 0, 0))
        for key, total in needs(orders, self.rows, self.quotas).items():
            self.quotas[key].granted = max(self.quotas[key].granted, min(total, self.stock))
            self.quotas[key].seq += 1
        plan = make_plan(orders, self.rows, self.quotas)
        apply_changes(self.quotas, plan.changes)
        for row in plan.rows:
            units = {line.sku: line.quantity for line in row.lines}
            self.held[row.order_id.int] = sum(units.values()) if holds_units(row) else 0
        newest = {row.order_id.int: row for row in plan.rows}
        for version in plan.transitions:
            self.noted.append((version.entry.order_id.int, version.entry.version))
        for order in {v.entry.order_id.int for v in plan.transitions} | newest.keys():
            before = self.rows.get(order)
            versions = frozenset(v for o, v in self.noted if o == order)
            if order in newest:
                self.rows[order] = Stored(newest[order].version, holds_units(newest[order]), versions)
            elif before is not None:
                self.rows[order] = replace(before, versions=versions)
        for quota in self.quotas.values():
            assert 0 <= quota.sold <= quota.granted <= self.stock
        return [version.source for order in plan.waiting for version in order.versions]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1 << 32), stock=st.integers(0, 12))
def test_any_arrival_ends_in_the_same_state(data: st.DataObject, seed: int, stock: int) -> None:
    maker = Maker(random.Random(seed), SALE)
    finals: dict[int, OrderStatus] = {}
    for _ in range(data.draw(st.integers(1, 8))):
        order = maker.order(lines=[("SKU-1", data.draw(st.integers(1, 3)))])
        maker.numbered(order)
        status = data.draw(st.sampled_from(list(OrderStatus)[:4]))
        finals[order.order_id.int] = status
        if status is not OrderStatus.RESERVED:
            maker.numbered(later(order, status))
    arrivals = data.draw(st.permutations(maker.log + data.draw(st.lists(st.sampled_from(maker.log), max_size=8))))
    shard = Shard(stock)
    while arrivals:
        size = data.draw(st.integers(1, len(arrivals)))
        waiting = shard.write(arrivals[:size])
        arrivals = arrivals[size:] + (waiting if arrivals[size:] else [])
    left = shard.write(maker.log)  # everything once more: changes only orders that found no unit before

    assert sum(quota.sold for quota in shard.quotas.values()) == sum(shard.held.values())
    assert len(shard.noted) == len(set(shard.noted))
    without_units = {entry.entry[26:42] for entry in left}
    for order_id, status in finals.items():
        if order_id.to_bytes(16, "big") in without_units:
            assert status in (OrderStatus.RESERVED, OrderStatus.PAID)
        else:
            assert shard.rows[order_id].charged == (status in (OrderStatus.RESERVED, OrderStatus.PAID))
    arrived = {(int.from_bytes(e.entry[26:42], "big"), int.from_bytes(e.entry[2:4], "big")) for e in maker.log}
    without_row = {noted for noted in arrived if noted[0].to_bytes(16, "big") in without_units}
    assert arrived - without_row <= set(shard.noted) <= arrived


def test_entries_that_can_be_no_row_are_poison() -> None:
    maker = Maker(random.Random(1), SALE)
    good = maker.order(shard=1)

    def refuse(reason: str, entry: SequencedEntry, shard: int = 1) -> None:
        with pytest.raises(PoisonEntry, match=reason):
            read_entry(entry, shard=shard, topology=TOPOLOGY)

    assert read_entry(maker.numbered(good), shard=1, topology=TOPOLOGY).entry == good
    refuse("malformed", SequencedEntry(1, 1, b"\x07" + encode_entry(good)[1:]))
    refuse("malformed", SequencedEntry(1, 1, encode_entry(good)[:-1]))
    refuse("order of shard 1", maker.numbered(good), shard=2)
    refuse("order of lane 1 in lane 2", replace(maker.numbered(good), lane=2))
    refuse("no lines", maker.numbered(replace(good, lines=())))
    refuse("version 0", maker.numbered(replace(good, version=0)))
    refuse("NUL", maker.numbered(replace(good, idempotency_key="a\0b")))
    refuse("number out of range", replace(maker.numbered(good), lane_seq=1 << 63))
    refuse("time out of range", maker.numbered(replace(good, expires_at_ms=(1 << 48) - 1)))


async def test_columns_reach_the_database_as_they_are(databases: Databases) -> None:
    sent = {
        "uuids": columns.uuids([SALE, UUID(int=0)]),
        "smallints": columns.smallints([-1, 32767]),
        "integers": columns.integers([-(1 << 31), 7]),
        "bigints": columns.bigints([1 << 62]),
        "booleans": columns.booleans([True, False]),
        "timestamps": columns.timestamps([0, 1_790_000_000_123]),
        "texts": columns.texts(["", "ä,{}\"'"]),
        "jsonbs": columns.jsonbs([b'{"a": [1]}']),
        "none": columns.bigints([]),
    }
    async with await psycopg.AsyncConnection.connect(databases.shard_dsns[0]) as connection:
        columns.teach(connection)
        cursor = await connection.execute(
            "SELECT %(uuids)s, %(smallints)s, %(integers)s, %(bigints)s, %(booleans)s, %(texts)s, %(jsonbs)s, %(none)s, "
            "ARRAY(SELECT (extract(epoch FROM t) * 1000)::bigint FROM unnest(%(timestamps)s) AS t)",
            sent,
        )
        assert await cursor.fetchone() == (
            [SALE, UUID(int=0)], [-1, 32767], [-(1 << 31), 7], [1 << 62], [True, False], ["", "ä,{}\"'"], [{"a": [1]}], [],
            [0, 1_790_000_000_123],
        )  # fmt: skip


# The effects of a batch, without a database


def effects_of(
    orders: list[Incoming], answers: Callable[[Effect], object], *, bisect: bool = False
) -> tuple[list[Effect], StoreResult]:
    """The effects in their order and the result, when each effect gets the answer of `answers`."""
    effects: list[Effect] = []
    steps = storing(orders, bisect=bisect)
    answer: object = None
    while True:
        try:
            effect = steps.send(answer)
        except StopIteration as end:
            result: StoreResult = end.value
            return effects, result
        effects.append(effect)
        answer = answers(effect)


@dataclass
class Answers:
    """A shard and a catalogue as data; `refused` are the orders that the database refuses."""

    granted: int = 0
    sold: int = 0
    stock: int = 0
    stored: dict[int, Stored] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)
    dead_lettered: set[tuple[int, int]] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)

    def __call__(self, effect: Effect) -> object:
        match effect:
            case ReadShard():
                quotas = {key: Quota(self.granted, 1, self.sold) for key in effect.skus}
                return ShardState(quotas, dict(self.stored), self.epochs)
            case ReadDeadLettered():
                return self.dead_lettered & set(effect.places)
            case RaiseGrants():
                return {key: Grant(min(total, self.stock), 2) for key, total in effect.totals.items()}
            case Write():
                bad = {row.order_id.int for row in effect.plan.rows} & self.refused
                return f"refused {len(bad)}" if bad else None
        return None


def kinds(effects: list[Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def test_a_batch_within_its_grant_only_reads_and_writes() -> None:
    maker = Maker(random.Random(1), SALE)
    orders = incoming([maker.numbered(maker.order()) for _ in range(3)])
    effects, result = effects_of(orders, Answers(granted=3))
    assert kinds(effects) == ["ReadShard", "Write"]
    assert (result.stored_count, result.event_count, result.waiting, result.given_up) == (3, 3, [], {})


def test_units_beyond_the_grant_are_asked_for_once_and_adopted() -> None:
    maker = Maker(random.Random(1), SALE)
    orders = incoming([maker.numbered(maker.order()) for _ in range(3)])
    effects, result = effects_of(orders, Answers(granted=1, stock=2))
    assert kinds(effects) == ["ReadShard", "RaiseGrants", "AdoptGrants", "Write"]
    asked = effects[1]
    assert isinstance(asked, RaiseGrants) and set(asked.totals.values()) == {3}
    assert (result.stored_count, len(result.waiting)) == (2, 1)


def test_a_grant_that_is_not_newer_is_not_adopted() -> None:
    maker = Maker(random.Random(1), SALE)
    orders = incoming([maker.numbered(maker.order())])
    answers = Answers(stock=5)

    def old_grant(effect: Effect) -> object:
        return {key: Grant(5, 1) for key in effect.totals} if isinstance(effect, RaiseGrants) else answers(effect)

    effects, result = effects_of(orders, old_grant)
    assert kinds(effects) == ["ReadShard", "RaiseGrants", "Write"]
    assert len(result.waiting) == 1


@pytest.mark.parametrize("counted", [False, True])
def test_late_orders_are_rejected_unless_the_rebuild_counted_them(counted: bool) -> None:
    maker = Maker(random.Random(1), SALE)
    late = maker.numbered(maker.order())
    answers = Answers(
        granted=1, epochs={maker.sale_id.int: 9}, dead_lettered={(late.lane, late.lane_seq)} if counted else set()
    )
    effects, result = effects_of(incoming([late]), answers)
    assert kinds(effects) == ["ReadShard", "ReadDeadLettered", "Write"]
    written = effects[2]
    assert isinstance(written, Write)
    assert [row.status for row in written.plan.rows] == [OrderStatus.RESERVED if counted else OrderStatus.REJECTED]
    assert len(result.final) == (0 if counted else 1)


@given(st.sets(st.integers(0, 11), max_size=12))
@settings(max_examples=40, deadline=None)
def test_bisecting_writes_every_order_that_is_not_refused(bad: set[int]) -> None:
    maker = Maker(random.Random(1), SALE)
    orders = incoming([maker.numbered(maker.order()) for _ in range(12)])
    refused = {orders[number].order_id.int for number in bad}
    effects, result = effects_of(orders, Answers(granted=12, refused=refused), bisect=True)
    assert {order.order_id.int for order, _ in result.poison} == refused
    assert all(reason == "refused 1" for _, reason in result.poison)
    assert (result.stored_count, result.event_count) == (12 - len(bad), 12 - len(bad))
    writes = [effect for effect in effects if isinstance(effect, Write)]
    assert all(write.savepoint for write in writes)
    assert len(writes) <= 1 + 2 * len(bad) * 4  # a path of the tree for each refused order
