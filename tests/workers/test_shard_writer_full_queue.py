"""A queue at its bound: only its own writer makes room, so the writer must not wait for room in it."""

from __future__ import annotations

import psycopg
import pytest

from devstack.servers import RedisServer
from runtime.queue import QueueFull, open_queue
from tests.workers.making import TOPOLOGY, Maker, stock
from tests.workers.writing import Bench, eventually, statuses


async def test_a_message_to_be_taken_apart_finds_no_room(bench: Bench, maker: Maker, redis_server: RedisServer) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 1})
    entries = [maker.numbered(maker.order(lines=[("SKU-1", 1)])) for _ in range(2)]
    bench.queue = open_queue(redis_server.url, TOPOLOGY.queues, length_max=1)  # the fixture closes its own

    async def one_is_stored() -> bool:
        return len(statuses(bench.databases)) == 1

    try:
        await bench.publish(entries)
        with pytest.raises(QueueFull):
            await bench.publish(entries)
        async with bench.running(0):
            await eventually(one_is_stored)
            # The other one waits in the same message, for which there is no second place.
            with psycopg.connect(bench.databases.catalogue_dsn) as connection:
                connection.execute("UPDATE stock_ledger SET stock = 2")
            await bench.drained()
        assert len(statuses(bench.databases)) == 2
        assert await bench.letters.count() == {}
    finally:
        await bench.queue.close()
