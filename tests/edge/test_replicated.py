"""Durability `replicated` on a real Redis with a replica that lives, is paused, is killed, and is promoted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from devstack.server_process import ServerProcess
from devstack.servers import RedisServer
from domain import topology
from edge.lane_marks import LaneMarks
from edge.redis_link import RedisAddress, RedisLink
from hotpath.batcher import Batcher
from hotpath.counters import Verdict
from hotpath.sales import SaleView
from hotpath.tickets import Ticket
from reservation.scripts import LOOKUP, RESERVE
from tests.edge.test_redis_link import LANE, publish, running

WAIT_S_MAX = 20.0
WAIT_MS = 300


@dataclass(frozen=True)
class Pair:
    primary: RedisServer
    replica: RedisServer

    def paused(self) -> contextlib.AbstractContextManager[None]:
        @contextlib.contextmanager
        def pause() -> Iterator[None]:
            pid = _pid(self.replica)
            os.kill(pid, signal.SIGSTOP)
            try:
                yield
            finally:
                os.kill(pid, signal.SIGCONT)

        return pause()


def _pid(server: ServerProcess) -> int:
    assert server.process is not None
    return server.process.pid


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """A primary and a replica that follows it."""
    extra = ("--repl-diskless-sync-delay", "0", "--shutdown-timeout", "0")
    primary = RedisServer(tmp_path / "primary", extra=extra)
    primary.start()
    replica = RedisServer(tmp_path / "replica", extra=(*extra, "--replicaof", f"127.0.0.1 {primary.port}"))
    try:
        replica.start()
        with redis.Redis(port=replica.port) as client:
            while client.info("replication")["master_link_status"] != "up":
                pass
        yield Pair(primary, replica)
    finally:
        replica.stop()
        primary.stop()


@pytest.fixture
async def link(pair: Pair) -> AsyncIterator[RedisLink]:
    def make_batcher(wake: Any) -> Batcher:
        return Batcher(
            reserve=(RESERVE.sha, RESERVE.source.encode()),
            lookup=(LOOKUP.sha, LOOKUP.source.encode()),
            emission_interval_us=100_000,
            burst=100,
            stream_length_max=1_000_000,
            batch_size_max=16,
            batches_in_flight_max=2,
            queue_length_max=1000,
            deadline_ms=8000,
            wake=wake,
            replicas=1,
            replica_wait_ms=WAIT_MS,
        )

    made = RedisLink(
        RedisAddress.parse(pair.primary.url), make_batcher, silence_s_max=16.0, on_sweep=lambda _: None,
        marks=LaneMarks(4),
    )  # fmt: skip
    async with running(made):
        yield made


async def order(link: RedisLink, sale: SaleView, key: str, *, user: bytes = b"u" * 16) -> Ticket:
    ticket = Ticket(sale, user, key, [(0, 1)])
    if link.batcher.submit(ticket):
        async with asyncio.timeout(WAIT_S_MAX):
            await ticket
    return ticket


def stored(server: RedisServer) -> int:
    with redis.Redis(port=server.port) as client:
        return int(client.xlen(topology.lane_stream_key(LANE)))


async def test_an_accepted_order_is_at_the_replica(pair: Pair, link: RedisLink) -> None:
    with redis.Redis(port=pair.primary.port) as client:
        sale = publish(client, stock=30)
    for number in range(3):
        tickets = await asyncio.gather(*(order(link, sale, f"{number}-{i}", user=os.urandom(16)) for i in range(16)))
        accepted = sum(ticket.verdict == Verdict.ACCEPTED for ticket in tickets)
        assert accepted == (16, 14, 0)[number]
        assert stored(pair.replica) == (16, 30, 30)[number]
    assert link.batcher.stats()["unconfirmed"] == 0


async def test_orders_are_unknown_while_the_replica_is_paused_and_repeated_ones_too(
    pair: Pair, link: RedisLink
) -> None:
    """WAIT after a batch that only repeats orders would return at once: the write before it makes it wait."""
    with redis.Redis(port=pair.primary.port) as client:
        sale = publish(client)
    assert (await order(link, sale, "before")).verdict == Verdict.ACCEPTED
    with pair.paused():
        first = await order(link, sale, "key")
        assert first.verdict == Verdict.UNKNOWN
        assert (await order(link, sale, "key")).verdict == Verdict.UNKNOWN
        assert stored(pair.primary) == 2
    again = await order(link, sale, "key")
    assert again.verdict == Verdict.REPLAYED and again.order_id == first.order_id
    assert stored(pair.replica) == 2
    assert link.batcher.stats()["unconfirmed"] == 2


async def test_a_repeated_order_found_by_the_lookup_is_confirmed_as_well(pair: Pair, link: RedisLink) -> None:
    """The lookup writes nothing: its answer says nothing about the replica. Refusals need no replica."""
    with redis.Redis(port=pair.primary.port) as client:
        sale = publish(client, stock=1)
    with pair.paused():
        assert (await order(link, sale, "key")).verdict == Verdict.UNKNOWN
        assert (await order(link, sale, "other")).verdict == Verdict.SOLD_OUT  # from now on by the lookup
        lookups = link.batcher.stats()["lookups_sent"]
        assert (await order(link, sale, "third")).verdict == Verdict.SOLD_OUT
        assert (await order(link, sale, "key")).verdict == Verdict.UNKNOWN
        assert link.batcher.stats()["lookups_sent"] == lookups + 2
    assert (await order(link, sale, "key")).verdict == Verdict.REPLAYED


async def test_without_a_replica_orders_are_refused_before_they_run(pair: Pair, link: RedisLink) -> None:
    with redis.Redis(port=pair.primary.port) as client:
        sale = publish(client)
        client.config_set("min-replicas-to-write", 1)
        assert (await order(link, sale, "before")).verdict == Verdict.ACCEPTED
        pair.replica.kill()
        async with asyncio.timeout(WAIT_S_MAX):
            while client.info("replication")["connected_slaves"]:  # noqa: ASYNC110 - another process changes
                await asyncio.sleep(0.02)
        refused = await order(link, sale, "key")
        assert refused.verdict == Verdict.UNAVAILABLE
        assert stored(pair.primary) == 1
    pair.replica.start()
    async with asyncio.timeout(WAIT_S_MAX):
        while True:
            verdict = (await order(link, sale, "key")).verdict
            if verdict not in (Verdict.UNAVAILABLE, Verdict.UNKNOWN):
                break
            await asyncio.sleep(0.05)
    assert verdict in (Verdict.ACCEPTED, Verdict.REPLAYED)
    assert stored(pair.replica) == 2


async def test_a_promoted_replica_has_every_accepted_order(pair: Pair, link: RedisLink) -> None:
    with redis.Redis(port=pair.primary.port) as client:
        sale = publish(client)
    accepted: set[bytes] = set()

    async def buy() -> None:
        user = os.urandom(16)
        for number in range(1000):
            ticket = await order(link, sale, str(number), user=user)
            if ticket.verdict == Verdict.ACCEPTED:
                accepted.add(ticket.order_id)
            elif ticket.verdict == Verdict.RATE_LIMITED:
                await asyncio.sleep(0.05)

    buyers = [asyncio.create_task(buy()) for _ in range(8)]
    try:
        async with asyncio.timeout(WAIT_S_MAX):
            while len(accepted) < 300:  # noqa: ASYNC110 - waits for buyers
                await asyncio.sleep(0.01)
        pair.primary.kill()
    finally:
        for buyer in buyers:
            buyer.cancel()
        await asyncio.gather(*buyers, return_exceptions=True)
    with redis.Redis(port=pair.replica.port) as client:
        client.replicaof("NO", "ONE")
        found: Any = client.xrange(topology.lane_stream_key(LANE))
    assert accepted <= {fields[b"e"][26:42] for _, fields in found}
