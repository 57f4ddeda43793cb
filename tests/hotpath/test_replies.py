"""Replies of the scripts: outcomes, replays and errors, in chunks of any size."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.orders import RECORD_SINCE_MS
from hotpath.counters import Verdict
from tests.hotpath.making import NOW_MS, Peer, make_sale, make_ticket


async def test_accepted_answer_follows_the_contract() -> None:
    peer, sale = Peer(), make_sale()
    peer.connect()
    ticket = make_ticket(sale, lines=[(1, 2), (0, 3)])
    peer.batcher.submit(ticket)
    (call,) = peer.calls()
    peer.receive(call.accepted())
    assert await ticket == Verdict.ACCEPTED
    assert not ticket.is_replayed
    assert json.loads(ticket.answer_body()) == {
        "order_id": str(UUID(bytes=ticket.order_id)),
        "sale_id": str(UUID(bytes=sale.sale_id)),
        "status": "reserved",
        "items": [
            {"sku": "SKU-2", "quantity": 2, "unit_price_minor": 5},
            {"sku": "SKU-1", "quantity": 3, "unit_price_minor": 1999},
        ],
        "total_minor": 6007,
        "currency": "EUR",
        "reserved_at": "2023-11-14T22:13:20.123Z",
        "expires_at": "2023-11-14T22:23:20.123Z",
    }
    assert call.orders[0][:16] == ticket.order_id


async def test_refusals_carry_their_argument() -> None:
    peer, sale = Peer(), make_sale()
    tickets = [make_ticket(sale, key=str(i)) for i in range(3)]
    peer.connect()
    for ticket in tickets:
        peer.batcher.submit(ticket)
    (call,) = peer.calls()
    peer.receive(call.answer(1234 * 16 + 6, 5, 60_000 * 16 + 4))
    assert [(Verdict(t.verdict).name, t.argument) for t in tickets] == [
        ("RATE_LIMITED", 1234),
        ("ENDED", 0),
        ("NOT_OPEN", 60_000),
    ]


async def test_replay_shows_the_first_order() -> None:
    peer, sale = Peer(), make_sale()
    ticket = make_ticket(sale, lines=[(0, 1), (1, 2)])
    peer.connect()
    peer.batcher.submit(ticket)
    (call,) = peer.calls()
    first = UUID(int=7).bytes
    peer.receive(call.answer(first + (NOW_MS - 60_000 - RECORD_SINCE_MS).to_bytes(5, "big") + bytes([1, 2, 0, 1])))
    assert ticket.verdict == Verdict.REPLAYED
    assert ticket.is_replayed
    body = json.loads(ticket.answer_body())
    assert body["order_id"] == str(UUID(bytes=first))
    assert [item["sku"] for item in body["items"]] == ["SKU-2", "SKU-1"]
    assert body["reserved_at"] == "2023-11-14T22:12:20.123Z"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_replies_in_any_chunks(data: st.DataObject) -> None:
    peer, sale = Peer(batch_size_max=3, batches_in_flight_max=3), make_sale()
    peer.connect()
    tickets = [make_ticket(sale, key=str(i)) for i in range(9)]
    for ticket in tickets:
        peer.batcher.submit(ticket)
    outcomes = data.draw(st.lists(st.sampled_from([0, 2, 5, 7, 77 * 16 + 6, "record"]), min_size=9, max_size=9))
    record = UUID(int=1).bytes + (NOW_MS - RECORD_SINCE_MS).to_bytes(5, "big") + b"\x00\x01"
    calls = peer.calls()
    wire = b"".join(
        call.answer(*(record if o == "record" else o for o in outcomes[3 * i : 3 * i + 3]))
        for i, call in enumerate(calls)
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=10)))
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        peer.batcher.receive(wire[start:end])
    assert [t.verdict for t in tickets] == [1 if o == "record" else int(o) % 16 for o in outcomes]


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", Verdict.OVERLOADED),
        ("MISCONF Errors writing to the AOF file", Verdict.UNAVAILABLE),
        ("READONLY You can't write against a read only replica.", Verdict.UNAVAILABLE),
        ("CORRUPT stock of a SKU", Verdict.UNAVAILABLE),
    ],
)
async def test_error_replies(error: str, verdict: Verdict) -> None:
    peer, sale = Peer(), make_sale()
    ticket = make_ticket(sale)
    peer.connect()
    peer.batcher.submit(ticket)
    peer.calls()
    peer.receive(f"-{error}\r\n".encode())
    assert ticket.verdict == verdict


async def test_noscript_loads_and_resubmits() -> None:
    peer, sale = Peer(), make_sale()
    tickets = [make_ticket(sale, key=str(i)) for i in range(3)]
    peer.connect()
    for ticket in tickets:
        peer.batcher.submit(ticket)
    (call,) = peer.calls()
    peer.receive(b"-NOSCRIPT No matching script.\r\n")
    (again,) = peer.calls()
    assert peer.loads == 4
    assert again.words == call.words
    peer.receive(again.accepted())
    assert all(ticket.verdict == Verdict.ACCEPTED for ticket in tickets)


async def test_one_damaged_record_refuses_only_its_own_order() -> None:
    peer, sale = Peer(batches_in_flight_max=16), make_sale()
    tickets = [make_ticket(sale, key=str(i)) for i in range(4)]
    peer.connect()
    for ticket in tickets:
        peer.batcher.submit(ticket)
    (together,) = peer.calls()
    assert together.size == 4
    peer.receive(b"-CORRUPT record\r\n")
    for place in range(4):  # each alone, in order
        (single,) = peer.calls()
        assert single.orders == [together.orders[place]]
        peer.receive(b"-CORRUPT record\r\n" if place == 1 else single.accepted())
    assert peer.calls() == []
    verdicts = [Verdict(ticket.verdict) for ticket in tickets]
    assert verdicts == [Verdict.ACCEPTED, Verdict.UNAVAILABLE, Verdict.ACCEPTED, Verdict.ACCEPTED]
