"""The body of a queue message to a shard writer: many order entries of one lane. Performs no I/O.

    1 format (1) | 2 lane | 2 count | count times: 8 lane_seq, 2 length, the entry

All integers are big-endian and unsigned.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

MESSAGE_FORMAT = 1
# Header of a fence message, which carries no orders: a rebuild sends one through a shard's queue, and its writer notes
# the value, `<sale id>:<fence id>`, in the shard when it takes the message off.
FENCE_HEADER = "fence"
ENTRIES_MAX = 1000
_HEAD = struct.Struct(">BHH")
_ENTRY = struct.Struct(">QH")


class MalformedMessage(ValueError):
    """The bytes are not a message of a format this code knows."""


@dataclass(frozen=True, slots=True)
class SequencedEntry:
    """An order entry with its place in its lane; the entry's own bytes may still prove to be poison."""

    lane: int
    lane_seq: int
    entry: bytes


def encode_orders(lane: int, entries: Sequence[tuple[int, bytes]]) -> bytes:
    """A message of `(lane_seq, entry)` pairs of one lane."""
    assert 0 < len(entries) <= ENTRIES_MAX
    parts = [_HEAD.pack(MESSAGE_FORMAT, lane, len(entries))]
    for seq, entry in entries:
        parts.append(_ENTRY.pack(seq, len(entry)))
        parts.append(entry)
    return b"".join(parts)


def decode_orders(body: bytes) -> list[SequencedEntry]:
    """Inverse of `encode_orders`; MalformedMessage for anything else."""
    try:
        fmt, lane, count = _HEAD.unpack_from(body)
        if fmt != MESSAGE_FORMAT:
            raise MalformedMessage(f"format {fmt}")
        if count == 0:
            raise MalformedMessage("no entries")
        at = _HEAD.size
        entries = []
        for _ in range(count):
            seq, length = _ENTRY.unpack_from(body, at)
            at += _ENTRY.size
            entry = body[at : at + length]
            if len(entry) != length:
                raise MalformedMessage("truncated")
            entries.append(SequencedEntry(lane, seq, entry))
            at += length
    except struct.error as error:
        raise MalformedMessage(str(error)) from error
    if at != len(body):
        raise MalformedMessage(f"{len(body) - at} bytes too many")
    return entries
