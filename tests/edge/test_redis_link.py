"""The link to a real Redis: handshake, loss at any moment, forgotten scripts, silence, and peers that are not Redis."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from devstack.servers import RedisServer
from domain import ids, topology
from domain.sales import LaneSaleState, SaleDefinition, SaleItem, Stock
from edge.lane_marks import LaneMarks
from edge.redis_link import RedisAddress, RedisLink
from edge.sale_directory import make_view
from hotpath.batcher import Batcher
from hotpath.counters import Verdict
from hotpath.sales import SaleView
from hotpath.tickets import Ticket
from reservation.scripts import LOAD, LOOKUP, RESERVE

LANE = 2
WAIT_S_MAX = 10.0


def make_batcher(wake: Callable[[], None], *, deadline_ms: int = 8000) -> Batcher:
    reserve, lookup = RESERVE, LOOKUP
    return Batcher(
        reserve=(reserve.sha, reserve.source.encode()),
        lookup=(lookup.sha, lookup.source.encode()),
        emission_interval_us=100_000,
        burst=20,
        stream_length_max=1_000_000,
        batch_size_max=16,
        batches_in_flight_max=2,
        queue_length_max=1000,
        deadline_ms=deadline_ms,
        wake=wake,
    )


def make_link(url: str, *, silence_s_max: float = 1.0, deadline_ms: int = 8000) -> RedisLink:
    return RedisLink(
        RedisAddress.parse(url),
        lambda wake: make_batcher(wake, deadline_ms=deadline_ms),
        silence_s_max=silence_s_max,
        on_sweep=lambda _: None,
        marks=LaneMarks(4),
    )


@contextlib.asynccontextmanager
async def running(link: RedisLink) -> AsyncIterator[RedisLink]:
    task = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def publish(client: redis.Redis, *, stock: int = 1_000_000) -> SaleView:
    """A sale of one SKU on one lane."""
    now_ms = int(time.time() * 1000)
    sale = SaleDefinition(
        uuid4(), "s", 1, 1, LaneSaleState.RUNNING, now_ms - 1000, now_ms + 3_600_000, 60_000, "EUR", (LANE,),
        (SaleItem("SKU-1", 100, 0),),
    )  # fmt: skip
    client.eval(
        LOAD.source, 1, topology.lane_state_key(LANE), ids.short(sale.sale_id), sale.pack_for_lane(),
        Stock.fresh(stock).pack(),
    )  # fmt: skip
    return make_view(sale)


async def place(link: RedisLink, sale: SaleView, key: str = "key") -> Ticket:
    ticket = Ticket(sale, os.urandom(16), key, [(0, 1)])
    if link.batcher.submit(ticket):
        await asyncio.wait_for(_wait(ticket), WAIT_S_MAX)
    return ticket


async def _wait(ticket: Ticket) -> int:
    return await ticket


def stored(client: redis.Redis) -> int:
    return int(client.xlen(topology.lane_stream_key(LANE)))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", RedisAddress(host="h")),
        ("redis://h:1/3", RedisAddress(host="h", port=1, database=3)),
        ("rediss://u:p%40@h:1", RedisAddress(host="h", port=1, username="u", password="p@", tls=True)),
        ("redis://:p@h?db=2", RedisAddress(host="h", password="p", database=2)),
        ("unix:///run/r.sock?db=4", RedisAddress(host="127.0.0.1", path="/run/r.sock", database=4)),
    ],
)
def test_addresses(url: str, address: RedisAddress) -> None:
    parsed = RedisAddress.parse(url)
    assert parsed == address
    assert address.password == "" or address.password not in repr(parsed)


def test_another_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="http"):
        RedisAddress.parse("http://h")


async def test_orders_over_a_plain_connection(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    sale = publish(redis_client, stock=50)
    async with running(make_link(redis_server.url)) as link:
        tickets = await asyncio.gather(*(place(link, sale, str(i)) for i in range(60)))
    assert sorted(Verdict(t.verdict).name for t in tickets) == ["ACCEPTED"] * 50 + ["SOLD_OUT"] * 10
    assert stored(redis_client) == 50
    assert abs(link.batcher.clock_offset_ms) < 1000


async def test_forgotten_scripts(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    sale = publish(redis_client)
    async with running(make_link(redis_server.url)) as link:
        for number in range(3):
            assert (await place(link, sale, str(number))).verdict == Verdict.ACCEPTED
            redis_client.script_flush()
    assert link.batcher.stats()["noscript"] == 2
    assert link.connections == 1


async def test_password_database_and_unix_socket(tmp_path: Path) -> None:
    socket = tmp_path / "r.sock"
    server = RedisServer(tmp_path / "redis", extra=["--unixsocket", str(socket)])
    await asyncio.to_thread(server.start)
    try:
        redis.Redis(port=server.port).config_set("requirepass", "secret")
        client = redis.Redis(port=server.port, password="secret", db=5)
        sale = publish(client)
        for url in (f"redis://:secret@127.0.0.1:{server.port}/5", f"unix://:secret@{socket}?db=5"):
            async with running(make_link(url)) as link:
                assert (await place(link, sale)).verdict == Verdict.ACCEPTED, link.batcher.take_error()
        assert stored(client) == 2
        # Refused many times; the deadline is longer than any pause between two attempts.
        async with running(make_link(server.url, deadline_ms=2000)) as link:
            assert (await place(link, sale)).verdict == Verdict.UNAVAILABLE
            assert link.connections == 0
            client.config_set("requirepass", "")
            assert (await place(link, publish(redis.Redis(port=server.port)))).verdict == Verdict.ACCEPTED
    finally:
        server.stop()


async def test_kill_and_restart_under_load(own_redis: RedisServer) -> None:
    client = redis.Redis(port=own_redis.port)
    sale = publish(client)
    placed: list[Ticket] = []

    async def buyer(number: int) -> None:
        for turn in range(40):
            placed.append(await place(link, sale, f"{number}-{turn}"))

    async with running(make_link(own_redis.url)) as link:
        buyers = [asyncio.create_task(buyer(number)) for number in range(20)]
        for so_many in (50, 400):
            while len(placed) < so_many:  # noqa: ASYNC110 - the kill comes at a moment, not after an event
                await asyncio.sleep(0.001)
            own_redis.kill()
            await asyncio.to_thread(own_redis.start)
        await asyncio.gather(*buyers)
    assert len(placed) == 800
    assert {Verdict(t.verdict) for t in placed} == {Verdict.ACCEPTED}
    assert not any(t.is_replayed for t in placed)  # each is a first answer for its client
    assert stored(redis.Redis(port=own_redis.port)) == len({t.order_id for t in placed}) == 800
    assert link.connections == 3


async def test_silence_costs_the_connection_and_the_answer_is_unknown(own_redis: RedisServer) -> None:
    client = redis.Redis(port=own_redis.port)
    sale = publish(client)
    async with running(make_link(own_redis.url, silence_s_max=0.3, deadline_ms=300)) as link:
        assert (await place(link, sale)).verdict == Verdict.ACCEPTED
        client.client_pause(900)
        assert (await place(link, sale, "paused")).verdict == Verdict.UNKNOWN
        deadline = time.monotonic() + WAIT_S_MAX
        while (await place(link, sale, "after")).verdict != Verdict.ACCEPTED:
            assert time.monotonic() < deadline
        assert link.connections >= 2


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"$99999999999\r\n", b"-ERR no\r\n"])
async def test_peers_that_are_no_redis(greeting: bytes) -> None:
    visits = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        await reader.read(10)
        writer.write(greeting)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, running(make_link(f"redis://127.0.0.1:{port}", deadline_ms=300)) as link:
        sale = make_view(
            SaleDefinition(
                uuid4(), "s", 1, 1, LaneSaleState.RUNNING, 0, 1, 1, "EUR", (LANE,), (SaleItem("SKU-1", 100, 0),)
            )
        )
        assert (await place(link, sale)).verdict == Verdict.UNAVAILABLE
        assert link.connections == 0
        assert 1 <= visits < 20  # it retries with growing pauses


async def test_what_waits_at_the_end_is_answered(redis_server: RedisServer) -> None:
    link = make_link("redis://127.0.0.1:1")
    task = asyncio.create_task(link.run())
    sale = publish(redis.Redis(port=redis_server.port))
    waiting = asyncio.create_task(place(link, sale))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await waiting).verdict == Verdict.UNAVAILABLE
