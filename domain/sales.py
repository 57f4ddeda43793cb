"""Sales: states, legal transitions, the definition that edges read, and the packed values of a lane's state hash.

Performs no I/O. The Lua scripts in `reservation/lua/` read the packed layouts and name the same offsets.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID

from domain import ids

SKUS_MAX = 200  # a SKU index is one byte in scripts and entries
PER_USER_LIMIT_MAX = 65_535  # 0 means no limit
STOCK_MAX = 1_000_000_000
PRICE_MAX = (1 << 40) - 1  # an order's entry has 5 bytes for a price
LANE_MAX = (1 << ids.LANE_BITS) - 1
_U8_MAX = (1 << 8) - 1
_U32_MAX = (1 << 32) - 1
_U64_MAX = (1 << 64) - 1


class SaleState(StrEnum):
    """State of a sale as staff and buyers see it."""

    DRAFT = "draft"
    SCHEDULED = "scheduled"
    OPEN = "open"
    PAUSED = "paused"
    ENDED = "ended"

    def may_become(self, later: SaleState) -> bool:
        """Legal transitions: draft -> scheduled -> open <-> paused; scheduled, open, paused -> ended.

        A draft opens when it is published after its start.
        """
        return later in _SALE_TRANSITIONS[self]


_SALE_TRANSITIONS: dict[SaleState, frozenset[SaleState]] = {
    SaleState.DRAFT: frozenset({SaleState.SCHEDULED, SaleState.OPEN}),
    SaleState.SCHEDULED: frozenset({SaleState.OPEN, SaleState.ENDED}),
    SaleState.OPEN: frozenset({SaleState.PAUSED, SaleState.ENDED}),
    SaleState.PAUSED: frozenset({SaleState.OPEN, SaleState.ENDED}),
    SaleState.ENDED: frozenset(),
}


class LaneSaleState(IntEnum):
    """State in a lane's definition. Whether a running sale is open follows from Redis time, not from a stored state."""

    RUNNING = 0
    PAUSED = 1
    ENDED = 2
    CLOSED = 3  # for recovery: edges answer `dependency_unavailable` until the sale is rebuilt


def state_at(state: LaneSaleState, *, starts_at_ms: int, ends_at_ms: int, now_ms: int) -> SaleState:
    """State to present for a published sale at `now_ms` (Redis time)."""
    if state is LaneSaleState.ENDED or now_ms >= ends_at_ms:
        return SaleState.ENDED
    if state is not LaneSaleState.RUNNING:
        return SaleState.PAUSED
    return SaleState.SCHEDULED if now_ms < starts_at_ms else SaleState.OPEN


@dataclass(frozen=True, slots=True)
class SaleItem:
    """One SKU on sale. Its position in `SaleDefinition.items` is its SKU index, fixed when the sale is published."""

    sku: str
    unit_price_minor: int
    per_user_limit: int  # 0: no limit


@dataclass(frozen=True, slots=True)
class SaleDefinition:
    """A published sale as edges know it: the JSON document at `topology.sale_key`.

    Items, prices, currency, hold time and lanes never change after publishing; state, window and version do.
    """

    sale_id: UUID
    name: str
    epoch: int
    version: int
    state: LaneSaleState
    starts_at_ms: int
    ends_at_ms: int
    hold_ms: int
    currency: str
    lanes: tuple[int, ...]
    items: tuple[SaleItem, ...]

    def as_document(self) -> dict[str, Any]:
        """JSON members, in their usual order."""
        return {
            "sale_id": str(self.sale_id),
            "name": self.name,
            "epoch": self.epoch,
            "version": self.version,
            "state": int(self.state),
            "starts_at_ms": self.starts_at_ms,
            "ends_at_ms": self.ends_at_ms,
            "hold_ms": self.hold_ms,
            "currency": self.currency,
            "lanes": list(self.lanes),
            "items": [
                {"sku": i.sku, "unit_price_minor": i.unit_price_minor, "per_user_limit": i.per_user_limit}
                for i in self.items
            ],
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> SaleDefinition:
        """Inverse of `as_document`.

        KeyError, ValueError or TypeError for a document of another shape or with a value that no sale has.
        """
        return cls(
            sale_id=UUID(_text(document["sale_id"])),
            name=_text(document["name"]),
            epoch=_number(document["epoch"], _U32_MAX),
            version=_number(document["version"], _U32_MAX),
            state=LaneSaleState(_number(document["state"], _U8_MAX)),
            starts_at_ms=_number(document["starts_at_ms"], _U64_MAX),
            ends_at_ms=_number(document["ends_at_ms"], _U64_MAX),
            hold_ms=_number(document["hold_ms"], _U32_MAX),
            currency=_ascii(document["currency"], least=3, most=3),
            lanes=tuple(_number(lane, LANE_MAX) for lane in _listed(document["lanes"], LANE_MAX + 1)),
            items=tuple(
                SaleItem(
                    _ascii(item["sku"], least=1, most=_U8_MAX),
                    _number(item["unit_price_minor"], PRICE_MAX),
                    _number(item["per_user_limit"], PER_USER_LIMIT_MAX),
                )
                for item in _listed(document["items"], SKUS_MAX)
            ),
        )

    @property
    def edition(self) -> bytes:
        """Epoch and version as the order scripts compare them with the lane's definition."""
        return pack_edition(self.epoch, self.version)

    def pack_for_lane(self) -> bytes:
        """The value of the lane's `d:<sale>` field.

            offset size
              0     1   state (LaneSaleState)
              1     4   epoch
              5     4   version
              9     8   starts_at_ms
             17     8   ends_at_ms
             25     4   hold_ms
             29     1   number of SKUs, then 2 bytes per SKU: per_user_limit

        All integers are big-endian and unsigned.
        """
        head = _DEFINITION.pack(
            self.state, self.epoch, self.version, self.starts_at_ms, self.ends_at_ms, self.hold_ms, len(self.items)
        )
        return head + struct.pack(f">{len(self.items)}H", *(i.per_user_limit for i in self.items))


def _number(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"not an integer from 0 to {most}: {value!r}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"not a text: {value!r}")
    return value


def _ascii(value: Any, *, least: int, most: int) -> str:
    text = _text(value)
    if not text.isascii() or not least <= len(text) <= most:
        raise ValueError(f"not {least} to {most} characters of ASCII: {text!r}")
    return text


def _listed(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise ValueError(f"not a list of 1 to {most}")
    return value


_DEFINITION = struct.Struct(">BIIQQIB")


def pack_edition(epoch: int, version: int) -> bytes:
    """Epoch and version as a packed definition has them from offset 1: 4 bytes each, big-endian, unsigned."""
    return struct.pack(">II", epoch, version)


@dataclass(frozen=True, slots=True)
class LaneDefinition:
    """A sale's definition as a lane has it: the packed fields of `SaleDefinition.pack_for_lane` before the limits."""

    state: LaneSaleState
    epoch: int
    version: int
    starts_at_ms: int
    ends_at_ms: int
    hold_ms: int

    @classmethod
    def unpack(cls, packed: bytes) -> LaneDefinition:
        """Decode a lane's `d:<sale>` field; ValueError for a value of another layout."""
        try:
            state, epoch, version, starts_at_ms, ends_at_ms, hold_ms, skus = _DEFINITION.unpack_from(packed)
        except struct.error as error:
            raise ValueError(f"{len(packed)} bytes are no packed definition") from error
        if len(packed) != _DEFINITION.size + 2 * skus:
            raise ValueError(f"a packed definition of {skus} SKUs has {len(packed)} bytes")
        return cls(LaneSaleState(state), epoch, version, starts_at_ms, ends_at_ms, hold_ms)


_STOCK = struct.Struct(">7I")
_ELSEWHERE = struct.Struct(">3B")
LEFT_UNKNOWN = 255  # so many units may be left, or more


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What a lane of a sale of many lanes knows of the others, for one SKU. Three bytes, behind the counters.

    `left`: units that are available in all lanes or in transit, at most; LEFT_UNKNOWN: no bound is known. `wanted`: the
    largest quantity that the lane refused because the units may be in other lanes; 0: none since units last came.
    `returns`: counts cancelled, expired and added units of the lane, modulo 256, so that an old `left` is not written.
    """

    left: int = LEFT_UNKNOWN
    wanted: int = 0
    returns: int = 0


@dataclass(frozen=True, slots=True)
class Stock:
    """Counters of one SKU of one sale in one lane, the value of the lane's `s:<sale>:<index>` field.

    Seven 4-byte big-endian unsigned integers in this order. Invariant A:
    allotted + borrowed - lent = available + reserved + paid + rejected. In a sale of many lanes `elsewhere` follows.
    """

    available: int
    reserved: int
    paid: int
    rejected: int
    allotted: int
    borrowed: int
    lent: int
    elsewhere: Elsewhere | None = None

    @property
    def unsold(self) -> int:
        """The lane's part of the units that are available in all lanes or in transit. No transfer changes it.

        Negative in a lane that sold units of other lanes.
        """
        return self.available + self.lent - self.borrowed

    @property
    def is_balanced(self) -> bool:
        """Invariant A of this counter set."""
        return self.allotted + self.borrowed - self.lent == self.available + self.reserved + self.paid + self.rejected

    def pack(self) -> bytes:
        """The 28 bytes of the field, 31 in a sale of many lanes."""
        counters = _STOCK.pack(
            self.available, self.reserved, self.paid, self.rejected, self.allotted, self.borrowed, self.lent
        )
        there = self.elsewhere
        return counters if there is None else counters + _ELSEWHERE.pack(there.left, there.wanted, there.returns)

    @classmethod
    def unpack(cls, data: bytes) -> Stock:
        """Inverse of `pack`; struct.error for another length."""
        counters, more = data[: _STOCK.size], data[_STOCK.size :]
        stock = cls(*_STOCK.unpack(counters))
        return replace(stock, elsewhere=Elsewhere(*_ELSEWHERE.unpack(more))) if more else stock

    @classmethod
    def fresh(cls, units: int, *, lanes: int = 1) -> Stock:
        """Stock of a lane that was just given `units`, in a sale of so many lanes."""
        return cls(units, 0, 0, 0, units, 0, 0, None if lanes == 1 else Elsewhere())

    @classmethod
    def total(cls, stocks: Iterable[Stock]) -> Stock:
        """Sum of each counter, as over the lanes of a sale."""
        listed = list(stocks)
        counters = [counter.name for counter in fields(cls) if counter.name != "elsewhere"]
        return cls(*(sum(getattr(stock, name) for stock in listed) for name in counters))


def spread(units: int, *, lanes: int, first: int = 0) -> list[int]:
    """Units of each lane: equal shares, the remainder one by one from the lane at place `first` on."""
    share, rest = divmod(units, lanes)
    return [share + ((place - first) % lanes < rest) for place in range(lanes)]


def restock_shares(key: str, units: int, *, lanes: int) -> list[int]:
    """Units of each lane in a restock, the same at each repeat. The key decides which lanes get one unit more."""
    return spread(units, lanes=lanes, first=zlib.crc32(key.encode()) % lanes)
