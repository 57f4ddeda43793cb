"""Promotion of a replica of the reservation Redis: only with everything that PostgreSQL has recorded."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import redis

from devstack.servers import RedisServer
from domain import topology
from domain.outcomes import Outcome
from runtime.process.settings import Settings, load_settings
from tests.reservation.lane import LANE, LaneClient, make_request
from tests.workers.rebuilding import open_sale
from tests.workers.selling import Market
from tests.workers.writing import Bench, rows
from workers.recovery.failover import FailoverRefused, promote

WAIT_S_MAX = 20.0


class Pair:
    """A primary with a sale, and its replica."""

    def __init__(self, folder: Path) -> None:
        extra = ("--repl-diskless-sync-delay", "0", "--shutdown-timeout", "0")
        self.primary = RedisServer(folder / "primary", extra=extra)
        self.primary.start()
        self.replica = RedisServer(folder / "replica", extra=(*extra, "--replicaof", f"127.0.0.1 {self.primary.port}"))
        self.replica.start()
        self.client = redis.Redis(port=self.primary.port)
        self.at_replica = redis.Redis(port=self.replica.port)
        self.wait()

    def wait(self) -> None:
        """Until the replica has everything."""
        deadline = time.monotonic() + WAIT_S_MAX
        while True:
            here, there = self.client.info("replication"), self.at_replica.info("replication")
            if there["master_link_status"] == "up" and there["slave_repl_offset"] >= here["master_repl_offset"]:
                return
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self) -> None:
        self.replica.stop()
        self.primary.stop()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    yield pair
    pair.stop()


@pytest.fixture
def settings(bench: Bench, pair: Pair) -> Settings:
    return load_settings({**bench.databases.environ, "FLASHSALE_REDIS_URL": pair.primary.url})


@pytest.fixture
def market(bench: Bench, pair: Pair, seed: int) -> Market:
    market = open_sale(bench, pair.client, random.Random(seed), units=10)
    market.buy(4)
    pair.wait()
    return market


def sell_at_replica(pair: Pair, market: Market) -> Outcome:
    return LaneClient(pair.at_replica).outcome(make_request(market.sale, UUID(int=77), "after"))


async def test_a_living_primary_is_fenced_and_follows(pair: Pair, settings: Settings, market: Market) -> None:
    promotion = await promote(settings, [pair.replica.url], accept_loss=False)
    assert promotion.primary_answered and not promotion.behind
    assert pair.at_replica.info("replication")["role"] == "master"
    assert sell_at_replica(pair, market) is Outcome.ACCEPTED
    assert pair.client.info("replication")["role"] == "slave"
    assert pair.client.config_get("min-replicas-to-write") == {"min-replicas-to-write": "0"}
    with pytest.raises(redis.ReadOnlyError):
        pair.client.set("late", "")


async def test_a_replica_with_everything_replaces_a_dead_primary(
    pair: Pair, settings: Settings, market: Market
) -> None:
    pair.primary.kill()
    promotion = await promote(settings, [pair.replica.url], accept_loss=False)
    assert not promotion.primary_answered and not promotion.behind
    assert sell_at_replica(pair, market) is Outcome.ACCEPTED


async def test_a_replica_that_is_behind_is_promoted_only_with_the_loss_accepted(
    pair: Pair, settings: Settings, market: Market, bench: Bench
) -> None:
    pair.at_replica.execute_command("REPLICAOF", "127.0.0.1", "1")  # cut off
    market.buy(3)
    # The watch has seen the orders that the replica does not have.
    query = "INSERT INTO lane_watermark (lane, verified_seq, seen_seq) VALUES (%s, 0, 7) RETURNING seen_seq"
    assert rows(bench.databases.catalogue_dsn, query, LANE) == [(7,)]
    pair.primary.kill()
    with pytest.raises(FailoverRefused, match=f"lane {LANE} has 4 of 7"):
        await promote(settings, [pair.replica.url], accept_loss=False)
    assert pair.at_replica.info("replication")["role"] == "slave"

    promotion = await promote(settings, [pair.replica.url], accept_loss=True)
    assert promotion.behind == {LANE: (4, 7)} and promotion.closed_sales == 1
    assert sell_at_replica(pair, market) is Outcome.STALE
    assert pair.at_replica.hget(topology.lane_state_key(LANE), "seq") == b"7"


async def test_a_primary_with_a_replica_that_cannot_catch_up_takes_orders_again(
    pair: Pair, settings: Settings, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.recovery.failover.CATCH_UP_S_MAX", 0.2)
    pair.at_replica.execute_command("REPLICAOF", "127.0.0.1", "1")
    market.buy(1)
    with pytest.raises(FailoverRefused, match="did not get the primary's data"):
        await promote(settings, [pair.replica.url], accept_loss=True)
    assert market.lane.outcome(make_request(market.sale, UUID(int=78), "k")) is Outcome.ACCEPTED


async def test_only_a_replica_is_promoted(pair: Pair, settings: Settings) -> None:
    with pytest.raises(FailoverRefused, match="is not a replica"):
        await promote(settings, [pair.primary.url], accept_loss=True)
