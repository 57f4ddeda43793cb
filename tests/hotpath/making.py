"""Sales, tickets and batchers for tests of the batcher, and a peer that answers as Redis does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from domain import topology
from domain.orders import OrderEntry, decode_entry
from hotpath.batcher import Batcher
from hotpath.sales import LaneNames, SaleView
from hotpath.tickets import Ticket
from tests.reference import resp

RESERVE_SHA, LOOKUP_SHA = "a" * 40, "b" * 40
NOW_MS = 1_700_000_000_123
FAR_NS = 2**62  # after every deadline


def make_sale(
    *,
    lanes: Sequence[int] = (0,),
    items: Sequence[tuple[str, int]] = (("SKU-1", 1999), ("SKU-2", 5)),
    sale_id: UUID | None = None,
    version: int = 1,
) -> SaleView:
    sale_id = sale_id or uuid4()
    return SaleView(
        sale_id=sale_id.bytes,
        epoch=3,
        version=version,
        hold_ms=600_000,
        currency="EUR",
        lanes=[
            LaneNames(
                lane=lane,
                state_key=topology.lane_state_key(lane),
                stream_key=topology.lane_stream_key(lane),
                beat_key=topology.lane_beat_key(lane),
                user_key_prefix=topology.user_key_prefix(lane, sale_id),
                order_key_prefix=topology.order_key_prefix(lane),
            )
            for lane in lanes
        ],
        items=items,
    )


def make_ticket(sale: SaleView, *, lines: Sequence[tuple[int, int]] = ((0, 1),), key: str = "key") -> Ticket:
    return Ticket(sale, os.urandom(16), key, lines)


def entry_of(order: bytes) -> OrderEntry:
    """The entry that the shard writer reads from a request's order."""
    head = b"\x02\x00" + b"\x00\x01" + bytes(4 + 6 + 6 + 6)
    return decode_entry(head + order)


@dataclass
class Call:
    """One EVALSHA that the batcher sent."""

    sha: str
    words: list[bytes]

    @property
    def keys(self) -> list[bytes]:
        return self.words[3 : 3 + int(self.words[2])]

    @property
    def arguments(self) -> list[bytes]:
        return self.words[3 + int(self.words[2]) :]

    @property
    def size(self) -> int:
        return int(self.arguments[0])

    @property
    def orders(self) -> list[bytes]:
        """Order id and body of each request: its entry without the head."""
        first = 5 + 2 * int(self.arguments[1])
        ids = [key[-16:] for key in self.keys[3::2]]
        return [order_id + body for order_id, body in zip(ids, self.arguments[first + 2 :: 3], strict=True)]

    def accepted(self) -> bytes:
        """The reply that accepts all orders."""
        return self.answer(*[0] * self.size)

    def answer(self, *members: int | bytes, now_ms: int = NOW_MS) -> bytes:
        assert len(members) == self.size
        return resp.encode_reply([now_ms, *members])


@dataclass
class Peer:
    """A batcher whose far side of the connection the test plays."""

    batch_size_max: int = 4
    batches_in_flight_max: int = 2
    queue_length_max: int = 100
    deadline_ms: int = 1000
    batch_size_early: int = 0
    wakes: int = 0
    loads: int = 0
    batcher: Batcher = field(init=False)

    def __post_init__(self) -> None:
        self.batcher = Batcher(
            reserve=(RESERVE_SHA, b"return 1"),
            lookup=(LOOKUP_SHA, b"return 2"),
            emission_interval_us=100_000,
            burst=20,
            stream_length_max=1000,
            batch_size_max=self.batch_size_max,
            batches_in_flight_max=self.batches_in_flight_max,
            queue_length_max=self.queue_length_max,
            deadline_ms=self.deadline_ms,
            batch_size_early=self.batch_size_early,
            wake=self._wake,
        )

    def _wake(self) -> None:
        self.wakes += 1

    def connect(self) -> list[Call]:
        """Connect, answer the loading of scripts, and return the calls that follow."""
        self.batcher.connected()
        return self.calls()

    def calls(self) -> list[Call]:
        """The calls that the batcher sends now. Answers SCRIPT LOAD at once."""
        calls = []
        commands, rest = resp.decode(self.batcher.output())
        assert rest == b""
        for command in commands:
            words: list[Any] = command  # type: ignore[assignment]
            if words[:2] == [b"SCRIPT", b"LOAD"]:
                self.loads += 1
                self.batcher.receive(b"$1\r\nx\r\n")
            else:
                assert words[0] == b"EVALSHA"
                calls.append(Call(words[1].decode(), words))
        return calls

    def receive(self, wire: bytes) -> None:
        self.batcher.receive(wire)
        self.batcher.settle()
