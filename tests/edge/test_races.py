"""Buyers that compete: for the last unit, with the same key, and after a lost reply."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from uuid import UUID, uuid4

from domain import topology
from domain.sales import LaneSaleState
from tests.edge.concurrent import ask, ask_all, order, orders_of_many
from tests.fixtures.fix_edge import Buyers, EdgeProcess, Publisher


async def test_a_hundred_buyers_race_for_the_last_unit(edge: EdgeProcess, buyers: Buyers, publisher: Publisher) -> None:
    sale = publisher.publish(stock=1)
    answers = await ask_all(edge.port, orders_of_many(sale, buyers, 100))
    assert Counter(answer.status for answer in answers) == {202: 1, 409: 99}
    assert {answer.json["code"] for answer in answers if answer.status == 409} == {"sold_out"}
    stock = publisher.stock(sale)
    assert (stock.available, stock.reserved) == (0, 1) and stock.is_balanced


async def test_the_same_key_a_hundred_times_in_parallel(
    edge: EdgeProcess, buyers: Buyers, publisher: Publisher
) -> None:
    sale = publisher.publish(stock=1000)
    request = order(sale, buyers.headers(uuid4(), key="one"), quantity=3)
    answers = await ask_all(edge.port, [request] * 100)
    accepted = [answer for answer in answers if answer.status == 202]
    # The local limiter may refuse some of the requests that one client sends at once; no other refusal is allowed.
    assert {answer.status for answer in answers} <= {202, 429} and len(accepted) >= 20
    assert len({answer.body for answer in accepted}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in accepted) == 1
    assert publisher.stock(sale).reserved == 3
    assert publisher.redis.exists(topology.order_key(UUID(accepted[0].json["order_id"])))


async def test_one_key_with_different_lines_in_parallel(
    edge: EdgeProcess, buyers: Buyers, publisher: Publisher
) -> None:
    sale = publisher.publish(stock=1000)
    buyer = uuid4()
    requests = [order(sale, buyers.headers(buyer, key="one"), quantity=1 + n % 2) for n in range(20)]
    answers = await ask_all(edge.port, requests)
    accepted = [answer for answer in answers if answer.status == 202]
    refused = [answer for answer in answers if answer.status != 202]
    assert {answer.json["code"] for answer in refused} == {"idempotency_key_reused"}
    assert (len(accepted), len(refused)) == (10, 10) and len({answer.body for answer in accepted}) == 1
    assert publisher.stock(sale).reserved == accepted[0].json["items"][0]["quantity"]


async def test_a_lost_reply_for_the_last_unit(edge: EdgeProcess, buyers: Buyers, publisher: Publisher) -> None:
    """The connection breaks after the order was sent. The same request again gets the order, even when all is sold."""
    sale = publisher.publish(stock=1)
    request = order(sale, buyers.headers(uuid4(), key="mine"))
    with socket.create_connection(("127.0.0.1", edge.port)) as lost:
        lost.sendall(request)
        lost.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # reset, no FIN
        deadline = time.monotonic() + 10
        while publisher.stock(sale).reserved == 0:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.002)
    other = await ask(edge.port, order(sale, buyers.headers()))
    assert (other.status, other.json["code"]) == (409, "sold_out")

    bodies = set()
    for state in (None, LaneSaleState.PAUSED, LaneSaleState.ENDED):
        if state is not None:
            sale = publisher.change(sale, state=state)
        again = await ask(edge.port, request)
        assert again.status == 202, (state, again)
        assert again.headers["idempotency-replayed"] == "true"
        bodies.add(again.body)
    assert len(bodies) == 1
    assert publisher.stock(sale).reserved == 1


async def test_a_full_sale_adds_up(edge: EdgeProcess, buyers: Buyers, publisher: Publisher) -> None:
    sale = publisher.publish(stock=150)
    answers = await ask_all(edge.port, orders_of_many(sale, buyers, 300))
    assert Counter(answer.status for answer in answers) == {202: 150, 409: 150}
    assert len({answer.json["order_id"] for answer in answers if answer.status == 202}) == 150
    stock = publisher.stock(sale)
    assert (stock.available, stock.reserved) == (0, 150) and stock.is_balanced
