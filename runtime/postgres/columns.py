"""PostgreSQL arrays in binary form, built column by column. Performs no I/O.

psycopg's own array dumper visits each element through Python; for a batch of thousands of orders with twenty columns
that costs more than the database's work. The format is that of `array_send` in PostgreSQL's arrayfuncs.c:

    4 dimensions, 1 | 4 has nulls, 0 | 4 element oid | 4 number of elements | 4 lower bound, 1 |
    per element: 4 length, the element in its type's binary form
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from uuid import UUID

from psycopg import AsyncConnection, DataError
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.rows import TupleRow

SMALLINT_MAX = (1 << 15) - 1
BIGINT_MAX = (1 << 63) - 1
_HEAD = struct.Struct(">5i")
_LENGTH = struct.Struct(">i")
_JSONB_VERSION = b"\x01"
# timestamptz counts microseconds from 2000-01-01T00:00:00Z.
_POSTGRES_EPOCH_MS = 946_684_800_000


class Column(bytes):
    """A whole array in binary form; subclasses tell psycopg its type."""

    __slots__ = ()


class _Uuids(Column):
    __slots__ = ()


class _Smallints(Column):
    __slots__ = ()


class _Integers(Column):
    __slots__ = ()


class _Bigints(Column):
    __slots__ = ()


class _Texts(Column):
    __slots__ = ()


class _Jsonbs(Column):
    __slots__ = ()


class _Timestamps(Column):
    __slots__ = ()


class _Booleans(Column):
    __slots__ = ()


class _Byteas(Column):
    __slots__ = ()


# (class, oid of the element type, oid of the array type), from pg_type.dat
_TYPES: tuple[tuple[type[Column], int, int], ...] = (
    (_Uuids, 2950, 2951),
    (_Smallints, 21, 1005),
    (_Integers, 23, 1007),
    (_Bigints, 20, 1016),
    (_Texts, 25, 1009),
    (_Jsonbs, 3802, 3807),
    (_Timestamps, 1184, 1185),
    (_Booleans, 16, 1000),
    (_Byteas, 17, 1001),
)
_ELEMENT_OID = {cls: element for cls, element, _ in _TYPES}


class _ColumnDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Column) -> bytes:
        return bytes(obj)


_DUMPERS = [(cls, type(f"{cls.__name__}Dumper", (_ColumnDumper,), {"oid": array})) for cls, _, array in _TYPES]


def teach(connection: AsyncConnection[TupleRow]) -> None:
    """Register the dumpers, so that a connection takes columns as parameters. Connections of pools have them."""
    for cls, dumper in _DUMPERS:
        connection.adapters.register_dumper(cls, dumper)


def uuids(values: Sequence[UUID]) -> Column:
    """`uuid[]`."""
    return _fixed(_Uuids, "16s", 16, [value.bytes for value in values])


def smallints(values: Sequence[int]) -> Column:
    """`smallint[]`; DataError for a value out of range."""
    return _fixed(_Smallints, "h", 2, values)


def integers(values: Sequence[int]) -> Column:
    """`integer[]`; DataError for a value out of range."""
    return _fixed(_Integers, "i", 4, values)


def bigints(values: Sequence[int]) -> Column:
    """`bigint[]`; DataError for a value out of range."""
    return _fixed(_Bigints, "q", 8, values)


def booleans(values: Sequence[bool]) -> Column:
    """`boolean[]`."""
    return _fixed(_Booleans, "?", 1, values)


def timestamps(values_ms: Sequence[int]) -> Column:
    """`timestamptz[]` of Unix milliseconds."""
    return _fixed(_Timestamps, "q", 8, [(value - _POSTGRES_EPOCH_MS) * 1000 for value in values_ms])


def texts(values: Sequence[str]) -> Column:
    """`text[]`."""
    return _variable(_Texts, [value.encode() for value in values])


def byteas(values: Sequence[bytes]) -> Column:
    """`bytea[]`."""
    return _variable(_Byteas, values)


def jsonbs(values: Sequence[bytes]) -> Column:
    """`jsonb[]` of JSON texts."""
    return _variable(_Jsonbs, [_JSONB_VERSION + value for value in values])


def _head(cls: type[Column], count: int) -> bytes:
    element = _ELEMENT_OID[cls]
    return _HEAD.pack(1, 0, element, count, 1) if count else _HEAD.pack(0, 0, element, 0, 0)[:12]


def _fixed(cls: type[Column], code: str, length: int, values: Sequence[int] | Sequence[bytes]) -> Column:
    pairs: Iterable[tuple[int, int | bytes]] = zip(repeat(length), values)
    flat = chain.from_iterable(pairs)
    try:
        packed = struct.pack(">" + f"i{code}" * len(values), *flat)
    except struct.error as error:
        # As PostgreSQL would answer it: a data error of the order that caused it, never the end of the writer.
        raise DataError(f"value out of range: {error}") from error
    return cls(_head(cls, len(values)) + packed)


def _variable(cls: type[Column], values: Sequence[bytes]) -> Column:
    parts = [_head(cls, len(values))]
    for value in values:
        parts.append(_LENGTH.pack(len(value)))
        parts.append(value)
    return cls(b"".join(parts))
