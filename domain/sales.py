"""Sales: states, legal transitions, the definition that edges read, and the packed values of a lane's state hash.

Performs no I/O. The packed layouts are read by the Lua scripts; `reservation/lua/` names the same offsets.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID

SKUS_MAX = 200  # a SKU index is one byte in scripts and entries
PER_USER_LIMIT_MAX = 65_535  # 0 means no limit
STOCK_MAX = 1_000_000_000


class SaleState(StrEnum):
    """What a sale is, as staff and buyers see it."""

    DRAFT = "draft"
    SCHEDULED = "scheduled"
    OPEN = "open"
    PAUSED = "paused"
    ENDED = "ended"

    def may_become(self, later: SaleState) -> bool:
        """Legal transitions: draft -> scheduled -> open <-> paused; scheduled, open, paused -> ended.

        A draft whose start has passed opens when it is published.
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
    """What a lane's definition says. Whether a running sale is open is a matter of Redis time, not of a stored state."""

    RUNNING = 0
    PAUSED = 1
    ENDED = 2
    CLOSED = 3  # recovery: answered as `dependency_unavailable` until rebuilt


def state_at(state: LaneSaleState, *, starts_at_ms: int, ends_at_ms: int, now_ms: int) -> SaleState:
    """The state to present for a published sale at a time (Redis time)."""
    if state is LaneSaleState.ENDED or now_ms >= ends_at_ms:
        return SaleState.ENDED
    if state is not LaneSaleState.RUNNING:
        return SaleState.PAUSED
    return SaleState.SCHEDULED if now_ms < starts_at_ms else SaleState.OPEN


@dataclass(frozen=True, slots=True)
class SaleItem:
    """One SKU on sale. Its place in `SaleDefinition.items` is its SKU index, fixed when published."""

    sku: str
    unit_price_minor: int
    per_user_limit: int  # 0: no limit


@dataclass(frozen=True, slots=True)
class SaleDefinition:
    """What edges know of a published sale: the JSON document at `Topology.sale_key`.

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
        """Inverse of `as_document`; KeyError or ValueError for a document of another shape."""
        return cls(
            sale_id=UUID(document["sale_id"]),
            name=document["name"],
            epoch=document["epoch"],
            version=document["version"],
            state=LaneSaleState(document["state"]),
            starts_at_ms=document["starts_at_ms"],
            ends_at_ms=document["ends_at_ms"],
            hold_ms=document["hold_ms"],
            currency=document["currency"],
            lanes=tuple(document["lanes"]),
            items=tuple(SaleItem(i["sku"], i["unit_price_minor"], i["per_user_limit"]) for i in document["items"]),
        )

    @property
    def edition(self) -> bytes:
        """What an edge believes of the sale, as the order scripts compare it with the lane's."""
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


_DEFINITION = struct.Struct(">BIIQQIB")


def pack_edition(epoch: int, version: int) -> bytes:
    """Epoch and version as they stand in a packed definition, from offset 1: 4 bytes each, big-endian, unsigned."""
    return struct.pack(">II", epoch, version)


def packed_end(packed: bytes) -> tuple[LaneSaleState, int]:
    """State and `ends_at_ms` of a lane's `d:<sale>` field; struct.error or ValueError for another value."""
    state, _, _, _, ends_at_ms, _, _ = _DEFINITION.unpack_from(packed)
    return LaneSaleState(state), ends_at_ms


_STOCK = struct.Struct(">7I")


@dataclass(frozen=True, slots=True)
class Stock:
    """Counters of one SKU of one sale in one lane, the value of the lane's `s:<sale>:<index>` field.

    Seven 4-byte big-endian unsigned integers in this order. Invariant A:
    allotted + borrowed - lent = available + reserved + paid + rejected.
    """

    available: int
    reserved: int
    paid: int
    rejected: int
    allotted: int
    borrowed: int
    lent: int

    @property
    def is_balanced(self) -> bool:
        """Invariant A of this counter set."""
        return self.allotted + self.borrowed - self.lent == self.available + self.reserved + self.paid + self.rejected

    def pack(self) -> bytes:
        """The 28 bytes of the field."""
        return _STOCK.pack(
            self.available, self.reserved, self.paid, self.rejected, self.allotted, self.borrowed, self.lent
        )

    @classmethod
    def unpack(cls, data: bytes) -> Stock:
        """Inverse of `pack`; struct.error for another length."""
        return cls(*_STOCK.unpack(data))

    @classmethod
    def fresh(cls, units: int) -> Stock:
        """Stock of a lane that was just given `units`."""
        return cls(units, 0, 0, 0, units, 0, 0)
