"""Reads a stream entry's place in its lane and its shard. Performs no I/O.

Reads only the head of the entry; the shard writer checks the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson

from domain.headers import HEADERS_LENGTH_MAX
from domain.orders import ENTRY_FORMAT
from domain.topology import BUCKETS, Topology

ENTRY_LENGTH_MIN = 79  # head, three ids, currency, empty key, no line
ENTRY_LENGTH_MAX = 65_535  # a queue message has 2 bytes for the length
_CHANGED_AT = slice(20, 26)

RawEntry = tuple[bytes, Mapping[bytes, bytes]]


def shard_table(topology: Topology) -> list[int]:
    """Shard by virtual bucket."""
    return [topology.shard_of_bucket(bucket) for bucket in range(BUCKETS)]


def seq_of(entry_id: bytes) -> int:
    """`<lane_seq>-0` -> lane_seq."""
    return int(entry_id.partition(b"-")[0])


def changed_at_ms(fields: Mapping[bytes, bytes]) -> int | None:
    """When the entry came to be, None for a malformed one."""
    entry = fields.get(b"e", b"")
    return int.from_bytes(entry[_CHANGED_AT], "big") if len(entry) >= ENTRY_LENGTH_MIN else None


def bucket_of_entry(entry: bytes, lane: int) -> int | None:
    """Virtual bucket of a well-formed entry of this lane, else None.

    The order id lies at 26..42 (`domain.orders`); its bytes by `domain.ids`: 6, 7 are version and lane, 8, 9 variant
    and bucket. Read byte by byte, because this runs for every order and a UUID object would cost more than the rest.
    """
    if not ENTRY_LENGTH_MIN <= len(entry) <= ENTRY_LENGTH_MAX or entry[0] != ENTRY_FORMAT:
        return None
    if entry[32] >> 4 != 8 or ((entry[32] & 0x0F) << 8 | entry[33]) != lane or entry[34] >> 6 != 0b10:
        return None
    return (entry[34] & 0x3F) << 4 | entry[35] >> 4


def sort_page(
    page: Sequence[RawEntry], *, lane: int, shard_by_bucket: Sequence[int], poison: int
) -> list[tuple[int, int, bytes, bytes]]:
    """`(lane_seq, destination, entry, headers)` of each stream entry.

    The destination is the shard, or `poison` for an entry that belongs to none. The bytes of a poison entry are those
    that a dead letter can show.
    """
    sorted_page: list[tuple[int, int, bytes, bytes]] = []
    for entry_id, fields in page:
        entry = fields.get(b"e", b"")
        bucket = bucket_of_entry(entry, lane)
        if bucket is None:
            sorted_page.append((seq_of(entry_id), poison, _poison_body(fields), b""))
        else:
            sorted_page.append((seq_of(entry_id), shard_by_bucket[bucket], entry, _headers(fields)))
    return sorted_page


def _headers(fields: Mapping[bytes, bytes]) -> bytes:
    """The encoded headers, not checked. Headers that are too long are dropped: an order never waits for its headers."""
    if len(fields) == 1:
        return b""
    headers = fields.get(b"h", b"")
    return headers if len(headers) <= HEADERS_LENGTH_MAX else b""


def _poison_body(fields: Mapping[bytes, bytes]) -> bytes:
    """The field `e` as it is; other fields than `e` and `h` make it JSON, with bytes as hexadecimal digits."""
    if b"e" in fields and fields.keys() <= {b"e", b"h"}:
        return fields[b"e"]
    return orjson.dumps({name.hex(): value.hex() for name, value in fields.items()})
