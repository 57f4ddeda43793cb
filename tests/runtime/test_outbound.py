"""Connections to hosts that a user named: special addresses, names that resolve slowly, servers that are away."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from typing import Any

import pytest

from runtime.outbound.addresses import AddressRefused, PublicBackend, is_allowed

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
SLOW_NAMES = 40


@pytest.mark.parametrize(
    "address",
    [
        "192.0.0.192",  # metadata service of a cloud
        "192.0.0.10", "192.88.99.1", "168.63.129.16",  # the last one: services of a cloud for its guests
        "::ffff:0:127.0.0.1",  # IPv4-translated
        "3fff::1", "5f00::1", "4000::1", "8000::1",  # documentation, segments, not assigned
    ],
)  # fmt: skip
def test_addresses_that_lead_to_special_places_are_refused(address: str) -> None:
    assert not is_allowed(address)
    assert is_allowed(address, (ipaddress.ip_network(address),))


async def test_names_that_resolve_slowly_hold_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer keeps a thread for many seconds."""
    released = threading.Event()
    lookups = threading.Semaphore(0)
    resolve = socket.getaddrinfo

    def slow(host: Any, *rest: Any, **named: Any) -> Any:
        if host == "slow.example":
            lookups.release()
            released.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "slow")
        return resolve(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    backend = PublicBackend(LOOPBACK, connections_max=SLOW_NAMES + 1)
    waiting = [asyncio.create_task(backend.connect_tcp("slow.example", port)) for _ in range(SLOW_NAMES)]
    try:
        async with asyncio.timeout(10):
            stream = await backend.connect_tcp("localhost", port)
            await stream.aclose()
            # Other users of the loop's threads are not held up either.
            assert await asyncio.get_running_loop().getaddrinfo("localhost", port)
    finally:
        released.set()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        server.close()
    assert {type(each) for each in ended} == {socket.gaierror}


async def test_an_address_that_refuses_leads_to_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    asked: list[str] = []

    def several(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("10.0.0.1", "127.0.0.2", "127.0.0.1")
        ]

    monkeypatch.setattr(socket, "getaddrinfo", several)
    stream = await PublicBackend(LOOPBACK, connections_max=1).connect_tcp("several.example", port)
    assert stream.get_extra_info("server_addr")[0] == "127.0.0.1"
    await stream.aclose()
    server.close()
    assert asked[0] == "several.example"
    with pytest.raises(AddressRefused):
        await PublicBackend((), connections_max=1).connect_tcp("several.example", port)
