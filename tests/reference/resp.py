"""RESP2 and the batched script call in plain Python: the oracle of `hotpath.resp` and of the batcher's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from domain import topology
from domain.ids import short
from domain.orders import OrderEntry, encode_body, pack_key
from domain.sales import pack_edition


@dataclass(frozen=True)
class Failure:
    """An error reply."""

    text: str


def encode_command(parts: Sequence[bytes]) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def encode_reply(reply: object) -> bytes:
    match reply:
        case Failure(text):
            return f"-{text}\r\n".encode()
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % reply
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
        case list():
            return b"*%d\r\n" % len(reply) + b"".join(encode_reply(member) for member in reply)
    raise AssertionError(reply)


def decode(data: bytes) -> tuple[list[object], bytes]:
    """Complete replies, and the rest."""
    replies = []
    while True:
        one = _decode_one(data)
        if one is None:
            return replies, data
        reply, data = one
        replies.append(reply)


def _decode_one(data: bytes) -> tuple[object, bytes] | None:
    line, found, rest = data.partition(b"\r\n")
    if not found:
        return None
    kind, text = line[:1], line[1:]
    if kind == b"+":
        return text, rest
    if kind == b"-":
        return Failure(text.decode()), rest
    if kind == b":":
        return int(text), rest
    length = int(text)
    if length == -1:
        return None if kind not in b"$*" else (None, rest)
    if kind == b"$":
        return (rest[:length], rest[length + 2 :]) if len(rest) >= length + 2 else None
    members = []
    for _ in range(length):
        one = _decode_one(rest)
        if one is None:
            return None
        member, rest = one
        members.append(member)
    return members, rest


@dataclass(frozen=True)
class Sale:
    """One sale of a call, as the lane's script expects it."""

    sale_id: UUID
    epoch: int
    version: int


def script_call(
    sha: str,
    *,
    lane: int,
    interval_us: int,
    burst: int,
    stream_length_max: int,
    sales: Sequence[Sale],
    orders: Sequence[tuple[int, OrderEntry]],
) -> list[bytes]:
    """Words of `EVALSHA` for one batch; `orders` are (index of the sale, entry)."""
    keys = [topology.lane_state_key(lane).encode(), topology.lane_stream_key(lane).encode()]
    arguments: list[bytes] = [b"%d" % n for n in (len(orders), len(sales), interval_us, burst, stream_length_max)]
    for sale in sales:
        arguments += [short(sale.sale_id).encode(), pack_edition(sale.epoch, sale.version)]
    for place, entry in orders:
        keys += [topology.user_key(lane, entry.sale_id, entry.user_id), topology.order_key(entry.order_id)]
        arguments.append(pack_key(entry.idempotency_key))
        arguments.append(bytes([place, *(n for line in entry.lines for n in (line.sku_index, line.quantity))]))
        arguments.append(encode_body(entry))
    return [b"EVALSHA", sha.encode(), b"%d" % len(keys), *keys, *arguments]
