"""Orders: states, legal transitions, and their packed forms. Performs no I/O.

The *entry* is one byte string: the stream entry and a member of a queue message. Each version carries the whole
order, so redelivery and reordering are harmless. Its first byte is the version of the format; a decoder refuses an
unknown version with UnknownFormat.

    offset size
      0     1   version of the format, 2
      1     1   status
      2     2   version, from 1
      4     4   epoch of the sale
      8     6   reserved_at_ms
     14     6   expires_at_ms
     20     6   changed_at_ms, the time of this version
    -------- above: the head, made by the scripts
     26    16   order id
    -------- below: the immutable body, made by the edge, opaque to scripts but for line count and lines
     42    16   user id
     58    16   sale id
     74     3   currency, ASCII
     77     1   length of the packed idempotency key, then that (`pack_key`)
      .     1   number of lines, then per line:
                1 SKU index in the sale, 1 quantity, 5 unit price in minor units, 1 length of the SKU, the SKU

The order's *value* in Redis is the entry without two parts: the order id, with which its key ends, and the length and
text of the idempotency key, which is a field of the user's hash (`encode_value`; the scripts' side is
`reservation/lua/shared/value.lua`). An order that was read from its value has the key "". The *record* by which a key
is applied once is in the user's hash:

      0    16   order id
     16     5   reserved_at_ms - RECORD_SINCE_MS
     21     .   2 per line, in the order of the request: SKU index, quantity

All integers are big-endian and unsigned. Redis holds every byte a million times: docs/adr/0019 and 0030.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import IntEnum
from uuid import UUID

from domain import ids

ENTRY_FORMAT = 2
_HEAD = struct.Struct(">BBHIHIHIHI")  # a time is 2 + 4 bytes: struct has no code for 6
ENTRY_HEAD_SIZE = _HEAD.size
_BODY_HEAD = struct.Struct(">16s16s3s")
_LINE = struct.Struct(">BBBIB")  # the price is 1 + 4 bytes
_BODY_AT = ENTRY_HEAD_SIZE + ids.ID_BYTES
RECORD_SINCE_MS = 1_577_836_800_000  # 2020-01-01; five bytes from there last until 2054
_RECORD_HEAD = struct.Struct(">16sBI")
LINES_MAX = 8
QUANTITY_MAX = 100
SKU_LENGTH_MAX = 64
KEY_LENGTH_MAX = 64
_UUID_CHARS = 36
_U32 = 1 << 32


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
    """The bytes are not an entry, or not an order's value, of a format that this code knows."""


class UnknownFormat(MalformedEntry):
    """The first byte names a format that this code does not know: a newer release may have written the bytes."""

    def __init__(self, number: int) -> None:
        """`number` is the first byte."""
        super().__init__(f"format {number}")
        self.number = number


@dataclass(frozen=True, slots=True)
class EntryHead:
    """The fields before the body, the same in entry and value."""

    status: int  # not checked yet
    version: int
    epoch: int
    reserved_at_ms: int
    expires_at_ms: int
    changed_at_ms: int


def pack_key(key: str) -> bytes:
    """An idempotency key (visible ASCII) as Redis keeps it: 16 bytes for a UUID in its usual spelling, else its text.

    The two forms differ: bit 7 of byte 8 is set in a UUID (RFC 9562, section 4.1) and clear in a text of 16 characters.
    """
    if len(key) == _UUID_CHARS:
        value = ids.parse_uuid(key)
        if value is not None and _is_packed_uuid(value.bytes) and str(value) == key:
            return value.bytes
    return key.encode("ascii")


def unpack_key(packed: bytes) -> str:
    """Inverse of `pack_key`; ValueError for any other bytes."""
    if _is_packed_uuid(packed):
        return str(UUID(bytes=packed))
    key = packed.decode("ascii")
    if len(key) == _UUID_CHARS and pack_key(key) != packed:
        raise ValueError("a UUID that is not packed")
    return key


def _is_packed_uuid(packed: bytes) -> bool:
    return len(packed) == 16 and packed[8] >> 6 == 0b10


def encode_body(entry: OrderEntry) -> bytes:
    """The bytes after the order id in an entry, which the edge hands to `reserve`."""
    key = pack_key(entry.idempotency_key)
    assert key, "an order that was read from its value"
    return b"".join((_encode_body_head(entry), bytes([len(key)]), key, _encode_lines(entry)))


def _encode_body_head(entry: OrderEntry) -> bytes:
    return _BODY_HEAD.pack(entry.user_id.bytes, entry.sale_id.bytes, entry.currency.encode("ascii"))


def _encode_lines(entry: OrderEntry) -> bytes:
    parts = [bytes([len(entry.lines)])]
    for line in entry.lines:
        sku = line.sku.encode("ascii")
        price = divmod(line.unit_price_minor, _U32)
        parts.append(_LINE.pack(line.sku_index, line.quantity, *price, len(sku)) + sku)
    return b"".join(parts)


def encode_entry(entry: OrderEntry) -> bytes:
    """The whole entry."""
    return _encode_head(entry) + entry.order_id.bytes + encode_body(entry)


def encode_value(entry: OrderEntry) -> bytes:
    """The order's value in Redis."""
    return _encode_head(entry) + _encode_body_head(entry) + _encode_lines(entry)


def _encode_head(entry: OrderEntry) -> bytes:
    return _HEAD.pack(
        ENTRY_FORMAT,
        entry.status,
        entry.version,
        entry.epoch,
        *divmod(entry.reserved_at_ms, _U32),
        *divmod(entry.expires_at_ms, _U32),
        *divmod(entry.changed_at_ms, _U32),
    )


def encode_record(entry: OrderEntry) -> bytes:
    """The apply-once record of the order's key; struct.error for an order reserved outside 2020 to 2054."""
    since = divmod(entry.reserved_at_ms - RECORD_SINCE_MS, _U32)
    lines = (bytes([line.sku_index, line.quantity]) for line in entry.lines)
    return _RECORD_HEAD.pack(entry.order_id.bytes, *since) + b"".join(lines)


def decode_head(data: bytes) -> EntryHead:
    """The head of an entry or a value; MalformedEntry for one that is too short or of another format."""
    try:
        fmt, status, version, epoch, r, reserved, e, expires, c, changed = _HEAD.unpack_from(data)
    except struct.error as error:
        raise MalformedEntry(str(error)) from error
    if fmt != ENTRY_FORMAT:
        raise UnknownFormat(fmt)
    return EntryHead(status, version, epoch, r << 32 | reserved, e << 32 | expires, c << 32 | changed)


def decode_value(order_id: UUID, value: bytes) -> OrderEntry:
    """Inverse of `encode_value`, given the id that the order's key ends with; MalformedEntry for anything else.

    The idempotency key of the order is "".
    """
    lines_at = ENTRY_HEAD_SIZE + _BODY_HEAD.size
    return decode_entry(
        b"".join((value[:ENTRY_HEAD_SIZE], order_id.bytes, value[ENTRY_HEAD_SIZE:lines_at], b"\0", value[lines_at:]))
    )


def decode_entry(data: bytes) -> OrderEntry:
    """Inverse of `encode_entry`; MalformedEntry for anything else, also for trailing bytes."""
    try:
        head = decode_head(data)
        user, sale, currency = _BODY_HEAD.unpack_from(data, _BODY_AT)
        at = _BODY_AT + _BODY_HEAD.size
        key_length = data[at]
        at += 1
        key = data[at : at + key_length]
        at += key_length
        count = data[at]
        at += 1
        lines = []
        for _ in range(count):
            index, quantity, high, low, sku_length = _LINE.unpack_from(data, at)
            at += _LINE.size
            sku = data[at : at + sku_length]
            if len(sku) != sku_length:
                raise MalformedEntry("truncated")
            at += sku_length
            lines.append(OrderLine(index, sku.decode("ascii"), quantity, high << 32 | low))
        if at != len(data):
            raise MalformedEntry(f"{len(data) - at} bytes too many")
        return OrderEntry(
            UUID(bytes=data[ENTRY_HEAD_SIZE:_BODY_AT]),
            UUID(bytes=user),
            UUID(bytes=sale),
            unpack_key(key),
            currency.decode("ascii"),
            tuple(lines),
            OrderStatus(head.status),
            head.version,
            head.epoch,
            head.reserved_at_ms,
            head.expires_at_ms,
            head.changed_at_ms,
        )
    except MalformedEntry:
        raise
    except (struct.error, IndexError, ValueError) as error:
        raise MalformedEntry(str(error)) from error
