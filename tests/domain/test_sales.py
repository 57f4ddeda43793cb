"""Sales: states, their presentation at a time, and the packed values that scripts read."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from itertools import product
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.sales import (
    Elsewhere,
    LaneDefinition,
    LaneSaleState,
    SaleDefinition,
    SaleItem,
    SaleState,
    Stock,
    state_at,
)
from tests.domain.strategies import definitions, u32

DRAFT, SCHEDULED, OPEN, PAUSED, ENDED = SaleState
RUNNING = LaneSaleState.RUNNING


def test_legal_transitions() -> None:
    legal = {(a, b) for a, b in product(SaleState, repeat=2) if a.may_become(b)}
    assert legal == {
        (DRAFT, SCHEDULED),
        (DRAFT, OPEN),
        (SCHEDULED, OPEN),
        (OPEN, PAUSED),
        (PAUSED, OPEN),
        (SCHEDULED, ENDED),
        (OPEN, ENDED),
        (PAUSED, ENDED),
    }


def test_lane_state_numbers_are_fixed() -> None:
    """The scripts spell them."""
    assert {state.name: int(state) for state in LaneSaleState} == {"RUNNING": 0, "PAUSED": 1, "ENDED": 2, "CLOSED": 3}


@pytest.mark.parametrize(
    ("state", "now_ms", "expected"),
    [
        (LaneSaleState.RUNNING, 99, SCHEDULED),
        (LaneSaleState.RUNNING, 100, OPEN),
        (LaneSaleState.RUNNING, 199, OPEN),
        (LaneSaleState.RUNNING, 200, ENDED),
        (LaneSaleState.PAUSED, 99, PAUSED),
        (LaneSaleState.PAUSED, 199, PAUSED),
        (LaneSaleState.PAUSED, 200, ENDED),
        (LaneSaleState.CLOSED, 150, PAUSED),
        (LaneSaleState.ENDED, 99, ENDED),
        (LaneSaleState.ENDED, 150, ENDED),
    ],
)
def test_state_at_a_time(state: LaneSaleState, now_ms: int, expected: SaleState) -> None:
    assert state_at(state, starts_at_ms=100, ends_at_ms=200, now_ms=now_ms) is expected


@given(definitions)
def test_document_survives_json(definition: SaleDefinition) -> None:
    assert SaleDefinition.from_document(json.loads(json.dumps(definition.as_document()))) == definition


@pytest.mark.parametrize("member", ["sale_id", "epoch", "state", "lanes", "items"])
def test_document_of_another_shape_raises(member: str) -> None:
    document = _definition().as_document()
    del document[member]
    with pytest.raises(KeyError):
        SaleDefinition.from_document(document)


def test_document_with_an_unknown_state_raises() -> None:
    with pytest.raises(ValueError, match="9"):
        SaleDefinition.from_document(_definition().as_document() | {"state": 9})


@pytest.mark.parametrize(
    "change",
    [
        {"sale_id": 5},
        {"name": None},
        {"epoch": "5"},
        {"epoch": -1},
        {"version": 1 << 32},
        {"state": []},
        {"starts_at_ms": 1.5},
        {"ends_at_ms": 1 << 64},
        {"hold_ms": True},
        {"currency": "EURO"},
        {"currency": "\u00e9\u00e9\u00e9"},
        {"lanes": []},
        {"lanes": ["0"]},
        {"lanes": {"0": 0}},
        {"lanes": [4096]},
        {"items": []},
        {"items": [5]},
        {"items": [{"sku": 5, "unit_price_minor": 1, "per_user_limit": 0}]},
        {"items": [{"sku": "\u00e9", "unit_price_minor": 1, "per_user_limit": 0}]},
        {"items": [{"sku": "A", "unit_price_minor": 1 << 40, "per_user_limit": 0}]},
        {"items": [{"sku": "A", "unit_price_minor": 1, "per_user_limit": 65_536}]},
        {"items": [{"sku": "A", "unit_price_minor": 1, "per_user_limit": 0}] * 201},
    ],
)
def test_document_with_values_that_no_sale_has_raises(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        SaleDefinition.from_document(_definition().as_document() | change)


def test_definition_is_packed_as_documented() -> None:
    packed = _definition().pack_for_lane()
    assert packed == b"\x00" + struct.pack(">IIQQIB2H", 5, 6, 100, 200, 60_000, 2, 0, 65_535)
    assert len(packed) == 30 + 2 * 2
    assert replace(_definition(), state=LaneSaleState.CLOSED).pack_for_lane()[0] == 3


@given(definitions)
def test_every_definition_packs_to_its_length(definition: SaleDefinition) -> None:
    assert len(definition.pack_for_lane()) == 30 + 2 * len(definition.items)


@given(definitions)
def test_a_lane_definition_is_decoded_as_packed(definition: SaleDefinition) -> None:
    known = LaneDefinition.unpack(definition.pack_for_lane())
    assert all(getattr(known, name) == getattr(definition, name) for name in LaneDefinition.__slots__)


@pytest.mark.parametrize(
    "packed", [b"", bytes(29), bytes(29) + b"\x01", bytes(29) + b"\x01" + bytes(3), b"\x04" + bytes(29)]
)
def test_a_lane_definition_of_another_layout_raises(packed: bytes) -> None:
    with pytest.raises(ValueError, match=r"packed definition|LaneSaleState"):
        LaneDefinition.unpack(packed)


def test_stock_is_added_counter_by_counter() -> None:
    assert Stock.total([Stock(1, 2, 3, 4, 5, 6, 7), Stock(10, 20, 30, 40, 50, 60, 70)]) == Stock(
        11, 22, 33, 44, 55, 66, 77
    )
    assert Stock.total([]) == Stock.fresh(0)


@given(st.builds(Stock, u32, u32, u32, u32, u32, u32, u32))
def test_stock_round_trip(stock: Stock) -> None:
    assert len(stock.pack()) == 28
    assert Stock.unpack(stock.pack()) == stock
    left = stock.allotted + stock.borrowed - stock.lent
    assert stock.is_balanced == (left == stock.available + stock.reserved + stock.paid + stock.rejected)


def test_stock_is_packed_in_documented_order() -> None:
    assert Stock(1, 2, 3, 4, 5, 6, 7).pack() == struct.pack(">7I", 1, 2, 3, 4, 5, 6, 7)
    of_many_lanes = Stock(1, 2, 3, 4, 5, 6, 7, Elsewhere(8, 9, 10))
    assert of_many_lanes.pack() == struct.pack(">7I3B", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    assert Stock.unpack(of_many_lanes.pack()) == of_many_lanes


@pytest.mark.parametrize("length", [0, 27, 29])
def test_stock_of_another_length_raises(length: int) -> None:
    with pytest.raises(struct.error):
        Stock.unpack(bytes(length))


@given(u32)
def test_fresh_stock_is_balanced_and_all_available(units: int) -> None:
    stock = Stock.fresh(units)
    assert stock.is_balanced
    assert (stock.available, stock.allotted) == (units, units)
    if units:
        assert not replace(stock, available=units - 1).is_balanced


def _definition() -> SaleDefinition:
    return SaleDefinition(
        sale_id=UUID(int=1),
        name="Sale",
        epoch=5,
        version=6,
        state=RUNNING,
        starts_at_ms=100,
        ends_at_ms=200,
        hold_ms=60_000,
        currency="EUR",
        lanes=(2,),
        items=(SaleItem("A", 100, 0), SaleItem("B", 200, 65_535)),
    )
