"""Concurrent order requests of many buyers, each over its own connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from domain.sales import SaleDefinition
from tests.edge import wire
from tests.fixtures.fix_edge import Buyers

WAIT_S = 15.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer. Status 0: the connection broke without one."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """The next answer on a connection. Raises IncompleteReadError when the server closed it."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(int(head[0].split(" ")[1]), headers, body)


async def ask(port: int, request: bytes) -> Answer:
    """Send one request on its own connection. Raises TimeoutError without an answer."""
    async with asyncio.timeout(WAIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            return await read_answer(reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            return Answer(0, {}, b"")
        finally:
            writer.close()


async def ask_all(port: int, requests: Sequence[bytes]) -> list[Answer]:
    """Send all requests at once."""
    return list(await asyncio.gather(*(ask(port, request) for request in requests)))


def order(sale: SaleDefinition, headers: dict[str, str], *, quantity: int = 1, sku: str = "SKU-1") -> bytes:
    """The bytes of an order request."""
    body = json.dumps({"items": [{"sku": sku, "quantity": quantity}]}).encode()
    return wire.request("POST", f"/v1/sales/{sale.sale_id}/orders", headers, body)


def orders_of_many(sale: SaleDefinition, buyers: Buyers, count: int) -> list[bytes]:
    """One order each of `count` buyers."""
    return [order(sale, buyers.headers()) for _ in range(count)]
