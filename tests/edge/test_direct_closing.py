"""The direct door's connections: the last answer, peers that read slowly, resets, the places of clients."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import tracemalloc

import pytest
import uvloop

from edge import direct_door
from edge.addresses import client_of
from tests.edge.bare_door import bare_door, everything

LARGE = b"x" * (12 * 1024 * 1024)  # more than two sockets hold


def bodies(text: bytes) -> list[bytes]:
    """The bodies of small answers."""
    return re.findall(rb"\r\n\r\n(\w+?)(?=HTTP|$)", text)


def test_requests_that_have_begun_are_answered_before_a_close() -> None:
    """An order that was placed must not lose its answer because an earlier answer ends the connection."""

    async def scene() -> None:
        async with bare_door() as bare:
            client = await bare.connect()
            await bare.ask(client, "/1", "/2", "/3")
            bare.answer("/3", b"three")
            bare.answer("/1", b"one", ("connection", "close"))
            await asyncio.get_running_loop().sock_sendall(client, b"GET /4 HTTP/1.1\r\nHost: edge\r\n\r\n")
            bare.answer("/2", b"two")
            assert bodies(await everything(client)) == [b"one", b"two", b"three"]
            assert not bare.waiting, "the request that came after the close is not served"

    uvloop.run(scene())


def test_a_request_that_arrives_at_a_close_is_served_as_the_last_one() -> None:
    async def scene() -> None:
        async with bare_door() as bare:
            client = await bare.connect()
            await bare.ask(client, "/1")
            await asyncio.get_running_loop().sock_sendall(client, b"GET /2 HTTP/1.1\r\nHost: ed")
            await asyncio.sleep(0.02)
            bare.answer("/1", b"one", ("connection", "close"))
            await asyncio.get_running_loop().sock_sendall(client, b"ge\r\n\r\nGET /3 HTTP/1.1\r\nHost: edge\r\n\r\n")
            await bare.arrival("/2")
            bare.answer("/2", b"two")
            text = await everything(client)
            assert bodies(text) == [b"one", b"two"] and text.count(b"connection: close") == 1
            assert not bare.waiting

    uvloop.run(scene())


def test_a_head_that_breaks_off_after_a_close_ends_the_connection() -> None:
    async def scene() -> None:
        async with bare_door() as bare:
            client = await bare.connect()
            await bare.ask(client, "/1")
            await asyncio.get_running_loop().sock_sendall(client, b"GET /2 HTTP/1.1\r\nHost: ed")
            await asyncio.sleep(0.02)
            bare.answer("/1", b"one", ("connection", "close"))
            client.shutdown(socket.SHUT_WR)
            assert bodies(await everything(client)) == [b"one"]

    uvloop.run(scene())


def test_a_slow_reader_gets_the_whole_last_answer() -> None:
    """Also when the peer has sent more requests: unread bytes at a close would reset the connection."""

    async def scene() -> None:
        async with bare_door() as bare:
            client = await bare.connect()
            await bare.ask(client, "/1", close=True)
            bare.answer("/1", LARGE)
            await asyncio.get_running_loop().sock_sendall(client, b"GET /2 HTTP/1.1\r\nHost: edge\r\n\r\n")
            bare.pass_time(direct_door.WRITE_MS / 1000 - 1)
            await asyncio.sleep(0.02)
            assert (await everything(client)).endswith(b"\r\n\r\n" + LARGE)
            assert bare.door.unread == 0

    uvloop.run(scene())


def test_a_peer_that_never_reads_its_last_answer_is_closed() -> None:
    async def scene() -> None:
        async with bare_door() as bare:
            client = await bare.connect()
            await bare.ask(client, "/1", close=True)
            bare.answer("/1", LARGE)
            bare.pass_time(direct_door.WRITE_MS / 1000)
            await asyncio.sleep(0.02)
            assert (len(bare.door), bare.door.unread, bare.door.waiting_bytes) == (0, 1, 0)
            client.close()

    uvloop.run(scene())


def test_the_stop_waits_for_a_slow_reader() -> None:
    async def scene() -> None:
        async with bare_door() as bare:
            slow, idle = await bare.connect(), await bare.connect()
            await bare.ask(slow, "/1")
            bare.answer("/1", LARGE)
            stopping = asyncio.create_task(bare.edge.finish())
            assert await everything(idle) == b""
            assert not stopping.done()
            reading = asyncio.create_task(everything(slow))
            await asyncio.wait_for(stopping, direct_door.FINISH_S_MAX)
            bare.door.close()
            assert (await reading).endswith(b"\r\n\r\n" + LARGE)

    uvloop.run(scene())


@pytest.mark.parametrize("early", [False, True], ids=["peers that do not read", "answers before their turn"])
def test_answers_that_wait_take_a_bounded_memory(monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    """At the bound, an answer that would exceed it closes its connection."""
    monkeypatch.setattr(direct_door, "WAITING_BYTES_MAX", 2 * len(LARGE) + 100_000)

    async def scene() -> None:
        async with bare_door() as bare:
            clients = [await bare.connect() for _ in range(3)]
            for number, client in enumerate(clients):
                paths = [f"/{number}"] if not early else [f"/first{number}", f"/{number}"]
                await bare.ask(client, *paths)
                bare.answer(f"/{number}", LARGE)
            await asyncio.sleep(0.02)
            assert (len(bare.door), bare.door.unread) == (2, 1)
            assert 0 < bare.door.waiting_bytes <= direct_door.WAITING_BYTES_MAX
            for number, client in enumerate(clients[:2]):
                if early:
                    bare.answer(f"/first{number}", b"first")
                received = 0
                while received < len(LARGE):
                    received += len(await asyncio.get_running_loop().sock_recv(client, 1 << 20))
            await asyncio.sleep(0.02)
            assert bare.door.waiting_bytes == 0
            for client in clients:
                client.close()

    uvloop.run(scene())


def test_a_reset_before_the_accept_is_no_connection() -> None:
    """Such a socket has no address of a peer, so a look cannot count it for a client."""

    async def scene() -> None:
        async with bare_door() as bare:
            for _ in range(20):
                client = socket.create_connection(bare.address)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            for _ in range(20):
                list(bare.edge.places._connections.each(client_of))
                await asyncio.sleep(0)
            assert bare.edge.snapshot()["refused"] == 0
            client = await bare.connect()
            await bare.ask(client, "/1")
            client.close()

    uvloop.run(scene())


def test_a_look_never_closes_the_connection_of_another_client() -> None:
    """A look pauses. Meanwhile a full door looks as well, and the numbers change."""

    async def scene() -> None:
        async with bare_door() as bare:
            held = {address: await bare.connect(address) for address in ("127.0.0.2", "127.0.0.3", "127.0.0.4")}
            await asyncio.sleep(0.02)
            connections = bare.edge.places._connections
            chosen = next(each for each in connections.each(client_of) if each.client == client_of("127.0.0.2"))
            held["127.0.0.2"].close()
            await asyncio.sleep(0.02)
            assert len(list(connections.each(client_of))) == 2
            assert not connections.close(chosen, client_of)
            await asyncio.sleep(0.02)
            assert len(bare.door) == 2
            for client in held.values():
                client.close()

    uvloop.run(scene())


def test_a_flood_of_silent_sockets_keeps_no_buyer_out() -> None:
    """All arrive before the next look may take its time again."""

    async def scene() -> None:
        async with bare_door(connections_max=100) as bare:
            silent = [socket.create_connection(bare.address, source_address=("127.0.0.2", 0)) for _ in range(190)]
            buyers = [socket.create_connection(bare.address, source_address=("127.0.0.3", 0)) for _ in range(5)]
            for number, buyer in enumerate(buyers):
                buyer.setblocking(False)  # noqa: FBT003 - the only form
                await bare.ask(buyer, f"/{number}")
            assert bare.edge.snapshot()["refused"] == 0
            for client in (*silent, *buyers):
                client.close()

    uvloop.run(scene())


def test_an_idle_connection_keeps_nothing_of_its_last_request() -> None:
    """Thousands of idle connections would otherwise hold a head and a body of 64 KiB each."""
    count, size = 40, 60_000

    async def scene() -> None:
        async with bare_door() as bare:
            clients = [await bare.connect() for _ in range(count)]
            tracemalloc.start()
            for number, client in enumerate(clients):
                text = f"GET /{number} HTTP/1.1\r\nHost: edge\r\nX: {'x' * size}\r\nContent-Length: {size}\r\n\r\n"
                await asyncio.get_running_loop().sock_sendall(client, text.encode() + bytes(size))
                await bare.arrival(f"/{number}")
                bare.answer(f"/{number}", b"done")
                await asyncio.get_running_loop().sock_recv(client, 1000)
            held, _ = tracemalloc.get_traced_memory()
            assert held < count * size / 4, f"{held // count} bytes of each connection"
            for client in clients:
                client.close()

    try:
        uvloop.run(scene())
    finally:
        tracemalloc.stop()
