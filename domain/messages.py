"""The body of a queue message to a shard writer: many order entries of one lane. Performs no I/O.

The first byte is the version of the format. Version 1 has no headers:

    1 version (1) | 2 lane | 2 count | count times: 8 lane_seq, 2 length, the entry

Version 2 has headers for each entry (`domain.headers`), perhaps of no bytes:

    1 version (2) | 2 lane | 2 count |
    count times: 8 lane_seq, 2 length, 2 length of the headers, the entry, the headers

A message without any headers is written as version 1: headers then cost no bytes, and an older writer reads it. All
integers are big-endian and unsigned. A decoder refuses an unknown version with UnknownVersion.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

MESSAGE_VERSION = 1
MESSAGE_VERSION_WITH_HEADERS = 2
# Header of a fence message, which carries no orders: a rebuild sends one through a shard's queue, and its writer notes
# the value, `<sale id>:<fence id>`, in the shard when it takes the message off.
FENCE_HEADER = "fence"
ENTRIES_MAX = 1000
_HEAD = struct.Struct(">BHH")
_ENTRY = struct.Struct(">QH")
_ENTRY_WITH_HEADERS = struct.Struct(">QHH")


class MalformedMessage(ValueError):
    """The bytes are not a message of a version that this code knows."""


class UnknownVersion(MalformedMessage):
    """The first byte names a version that this code does not know: a newer release may have written the message."""

    def __init__(self, version: int) -> None:
        """`version` is the first byte."""
        super().__init__(f"version {version}")
        self.version = version


@dataclass(frozen=True, slots=True)
class SequencedEntry:
    """An order entry with its place in its lane and its encoded headers; entry and headers may be malformed."""

    lane: int
    lane_seq: int
    entry: bytes
    headers: bytes = b""


def encode_orders(lane: int, entries: Sequence[tuple[int, bytes]], headers: Sequence[bytes] = ()) -> bytes:
    """A message of `(lane_seq, entry)` pairs of one lane. `headers`: the encoded headers of each entry, or empty."""
    assert 0 < len(entries) <= ENTRIES_MAX
    assert not headers or len(headers) == len(entries)
    if any(headers):
        parts = [_HEAD.pack(MESSAGE_VERSION_WITH_HEADERS, lane, len(entries))]
        for (seq, entry), encoded in zip(entries, headers, strict=True):
            parts += (_ENTRY_WITH_HEADERS.pack(seq, len(entry), len(encoded)), entry, encoded)
        return b"".join(parts)
    parts = [_HEAD.pack(MESSAGE_VERSION, lane, len(entries))]
    for seq, entry in entries:
        parts.append(_ENTRY.pack(seq, len(entry)))
        parts.append(entry)
    return b"".join(parts)


def encode_sequenced(entries: Sequence[SequencedEntry]) -> bytes:
    """A message of entries of one lane, with their headers."""
    return encode_orders(
        entries[0].lane,
        [(entry.lane_seq, entry.entry) for entry in entries],
        [entry.headers for entry in entries],
    )


def decode_orders(body: bytes) -> list[SequencedEntry]:
    """Inverse of `encode_orders`; MalformedMessage for anything else."""
    try:
        version, lane, count = _HEAD.unpack_from(body)
        if version not in (MESSAGE_VERSION, MESSAGE_VERSION_WITH_HEADERS):
            raise UnknownVersion(version)
        if count == 0:
            raise MalformedMessage("no entries")
        at = _HEAD.size
        entries = []
        for _ in range(count):
            if version == MESSAGE_VERSION:
                seq, length = _ENTRY.unpack_from(body, at)
                at += _ENTRY.size
                entry, headers = body[at : at + length], b""
                at += length
            else:
                seq, length, headers_length = _ENTRY_WITH_HEADERS.unpack_from(body, at)
                at += _ENTRY_WITH_HEADERS.size
                entry, headers = body[at : at + length], body[at + length : at + length + headers_length]
                at += length + headers_length
            if at > len(body):
                raise MalformedMessage("truncated")
            entries.append(SequencedEntry(lane, seq, entry, headers))
    except struct.error as error:
        raise MalformedMessage(str(error)) from error
    if at != len(body):
        raise MalformedMessage(f"{len(body) - at} bytes too many")
    return entries
