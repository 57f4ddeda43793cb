"""A reply that breaks the protocol costs the connection, never an order: its ticket is resubmitted or expires."""

from __future__ import annotations

import os
import time

import pytest

from hotpath.batcher import Batcher
from hotpath.counters import Verdict
from hotpath.resp import ProtocolViolation
from hotpath.sales import LaneNames, SaleView
from hotpath.tickets import Ticket

LOADED = b"$1\r\na\r\n$1\r\nb\r\n"  # answers to the two SCRIPT LOADs of a new connection


def _batcher() -> Batcher:
    return Batcher(
        reserve=("a" * 40, b"reserve"),
        lookup=("b" * 40, b"lookup"),
        emission_interval_us=1,
        burst=1,
        stream_length_max=10,
        batch_size_max=8,
        batches_in_flight_max=2,
        queue_length_max=10,
        deadline_ms=60_000,
        wake=lambda: None,
    )


def _ticket() -> Ticket:
    lane = LaneNames(lane=0, state_key="s", stream_key="t", beat_key="b", user_key_prefix=b"u", order_key_prefix=b"o")
    sale = SaleView(
        sale_id=os.urandom(16), epoch=1, version=1, hold_ms=1000, currency="EUR", lanes=[lane], items=[("A", 1)]
    )
    return Ticket(sale, os.urandom(16), "key", [(0, 1)])


@pytest.mark.parametrize(
    "reply",
    [
        b"*2\r\n:1000\r\n$3\r\nabc\r\n",  # no apply-once record
        b"*3\r\n:1000\r\n:0\r\n:0\r\n",  # more answers than requests
        b"*2\r\n:1000\r\n*0\r\n",
        b"+OK\r\n",
        b":1\r\n",
        b"?\r\n",
    ],
)
async def test_batch_of_a_broken_reply_is_not_forgotten(reply: bytes) -> None:
    batcher, ticket = _batcher(), _ticket()
    batcher.connected()
    batcher.output()
    batcher.receive(LOADED)
    assert batcher.submit(ticket)
    first = batcher.output()
    with pytest.raises(ProtocolViolation):
        batcher.receive(reply)
    batcher.lost()
    assert batcher.queued == 1
    batcher.connected()
    assert first in batcher.output()  # the same order under the same id
    batcher.receive(LOADED + b"*2\r\n:1000\r\n:0\r\n")
    batcher.settle()
    assert Verdict(ticket.verdict) is Verdict.ACCEPTED


async def test_deadline_after_a_broken_reply_is_an_unknown_outcome() -> None:
    batcher, ticket = _batcher(), _ticket()
    batcher.connected()
    batcher.output()
    batcher.receive(LOADED)
    batcher.submit(ticket)
    batcher.output()
    with pytest.raises(ProtocolViolation):
        batcher.receive(b"+OK\r\n")
    batcher.lost()
    batcher.sweep(time.monotonic_ns() + 120 * 10**9)
    assert Verdict(ticket.verdict) is Verdict.UNKNOWN
