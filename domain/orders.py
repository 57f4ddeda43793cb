"""Orders: states, legal transitions, and the versioned whole-order entry. Performs no I/O.

The entry is one byte string that serves as the order's value in Redis, as the stream entry and as a member of a
queue message. Each version carries the whole order, so redelivery and reordering are harmless.

    offset size
      0     1   format, 1
      1     1   status
      2     2   version, from 1
      4     4   epoch of the sale
      8     8   reserved_at_ms
     16     8   expires_at_ms
     24     8   changed_at_ms, the time of this version
    -------- below: the immutable body, made by the edge, opaque to scripts but for line count and lines
     32    16   order id
     48    16   user id
     64    16   sale id
     80     3   currency, ASCII
     83     1   length of the idempotency key, then the key
      .     1   number of lines, then per line:
                1 SKU index in the sale, 1 quantity, 8 unit price in minor units, 1 length of the SKU, the SKU

All integers are big-endian and unsigned.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import IntEnum
from uuid import UUID

ENTRY_FORMAT = 1
ENTRY_HEAD = struct.Struct(">BBHIQQQ")
_IDS = struct.Struct(">16s16s16s3sB")
_LINE = struct.Struct(">BBQB")
LINES_MAX = 8
QUANTITY_MAX = 100
SKU_LENGTH_MAX = 64
KEY_LENGTH_MAX = 64


class OrderStatus(IntEnum):
    """Life of an order; the numbers are those of the entry and of the shard's `status` column."""

    RESERVED = 0
    PAID = 1
    CANCELLED = 2
    EXPIRED = 3
    REJECTED = 4

    @property
    def label(self) -> str:
        """The word used on the wire."""
        return self.name.lower()

    @property
    def is_final(self) -> bool:
        """No transition leaves a final state."""
        return self is not OrderStatus.RESERVED

    def may_become(self, later: OrderStatus) -> bool:
        """Legal transitions: only a reserved order changes."""
        return self is OrderStatus.RESERVED and later is not OrderStatus.RESERVED


@dataclass(frozen=True, slots=True)
class OrderLine:
    """One SKU of an order; `sku_index` is its place in the sale's definition."""

    sku_index: int
    sku: str
    quantity: int
    unit_price_minor: int


@dataclass(frozen=True, slots=True)
class OrderEntry:
    """A whole order at one version, as written by the scripts."""

    order_id: UUID
    user_id: UUID
    sale_id: UUID
    idempotency_key: str
    currency: str
    lines: tuple[OrderLine, ...]
    status: OrderStatus
    version: int
    epoch: int
    reserved_at_ms: int
    expires_at_ms: int
    changed_at_ms: int

    @property
    def total_minor(self) -> int:
        """Sum over the lines, in minor units of the currency."""
        return sum(line.quantity * line.unit_price_minor for line in self.lines)

    def status_at(self, now_ms: int) -> OrderStatus:
        """The state to present: a hold past its time reads as expired even before it is collected."""
        if self.status is OrderStatus.RESERVED and now_ms >= self.expires_at_ms:
            return OrderStatus.EXPIRED
        return self.status

    def becoming(self, status: OrderStatus, *, at_ms: int) -> OrderEntry:
        """The next version in another state; asserts that the transition is legal."""
        assert self.status.may_become(status), f"{self.status.label} -> {status.label}"
        return replace(self, status=status, version=self.version + 1, changed_at_ms=at_ms)


class MalformedEntry(ValueError):
    """The bytes are not an entry of a format this code knows."""


def encode_body(entry: OrderEntry) -> bytes:
    """The immutable part of an entry, what the edge hands to `reserve`."""
    key = entry.idempotency_key.encode("ascii")
    parts = [
        _IDS.pack(
            entry.order_id.bytes, entry.user_id.bytes, entry.sale_id.bytes, entry.currency.encode("ascii"), len(key)
        ),
        key,
        bytes([len(entry.lines)]),
    ]
    for line in entry.lines:
        sku = line.sku.encode("ascii")
        parts.append(_LINE.pack(line.sku_index, line.quantity, line.unit_price_minor, len(sku)) + sku)
    return b"".join(parts)


def encode_entry(entry: OrderEntry) -> bytes:
    """The whole entry."""
    head = ENTRY_HEAD.pack(
        ENTRY_FORMAT,
        entry.status,
        entry.version,
        entry.epoch,
        entry.reserved_at_ms,
        entry.expires_at_ms,
        entry.changed_at_ms,
    )
    return head + encode_body(entry)


def decode_entry(data: bytes) -> OrderEntry:
    """Inverse of `encode_entry`; MalformedEntry for anything else, also for trailing bytes."""
    try:
        fmt, status, version, epoch, reserved, expires, changed = ENTRY_HEAD.unpack_from(data)
        if fmt != ENTRY_FORMAT:
            raise MalformedEntry(f"format {fmt}")
        order, user, sale, currency, key_length = _IDS.unpack_from(data, ENTRY_HEAD.size)
        at = ENTRY_HEAD.size + _IDS.size
        key = data[at : at + key_length].decode("ascii")
        at += key_length
        count = data[at]
        at += 1
        lines = []
        for _ in range(count):
            index, quantity, price, sku_length = _LINE.unpack_from(data, at)
            at += _LINE.size
            sku = data[at : at + sku_length]
            if len(sku) != sku_length:
                raise MalformedEntry("truncated")
            at += sku_length
            lines.append(OrderLine(index, sku.decode("ascii"), quantity, price))
        if at != len(data):
            raise MalformedEntry(f"{len(data) - at} bytes too many")
        return OrderEntry(
            UUID(bytes=order),
            UUID(bytes=user),
            UUID(bytes=sale),
            key,
            currency.decode("ascii"),
            tuple(lines),
            OrderStatus(status),
            version,
            epoch,
            reserved,
            expires,
            changed,
        )
    except MalformedEntry:
        raise
    except (struct.error, IndexError, ValueError) as error:
        raise MalformedEntry(str(error)) from error
