"""Rounds of the verdict on invariant G: what they prove, what stands, and what is unknown."""

from __future__ import annotations

import json
from datetime import timedelta

import psycopg
from pydantic import SecretStr

from domain import topology
from payments.accounting import Accounting
from reservation.verdicts import VERDICT_AGE_MS_MAX, decode_money_verdict, publish_money_verdict
from runtime.postgres.pool import postgres_pool
from tests.payments.till import Till
from workers.reconciler.money import DEEP_AGE_S_MAX, DEEP_EVERY_S, QUICK_WINDOW, MoneyLooks


def looks_of(till: Till, clock: list[float]) -> MoneyLooks:
    accounting = Accounting(till.bench.pools, late=timedelta(0))
    return MoneyLooks(accounting, shards=len(till.bench.pools), now_s=lambda: clock[0])


async def test_old_damage_stands_as_long_as_it_is_there(till: Till) -> None:
    clock = [0.0]
    looks = looks_of(till, clock)
    order = till.order()
    await till.settling.settle(till.shard, [till.paying(order), till.paying(order)])
    till.store(till.held(order.order_id))
    await till.ledger.confirm(till.shard, limit=9)
    assert (await looks.look(1)).g is True
    long_ago = f"now() - interval '{QUICK_WINDOW * 2}'"
    with psycopg.connect(till.dsn) as connection:
        connection.execute(f"UPDATE payments SET changed_at = {long_ago}".encode())
        connection.execute("UPDATE refunds SET amount_minor = 1")
    assert (await looks.look(2)).g is True, "only a look at everything finds it"
    clock[0] += DEEP_EVERY_S
    verdict = await looks.look(3)
    assert verdict.g is False and "its refunds have other amounts" in verdict.detail[0]
    assert (await looks.look(4)).g is False, "its row is looked at again, although it did not change lately"
    with psycopg.connect(till.dsn) as connection:
        connection.execute("UPDATE refunds SET amount_minor = 100")
    assert (await looks.look(5)).g is True


async def test_a_shard_that_was_away_gets_time_to_settle_its_payments(till: Till) -> None:
    """Red verdicts of money that only waited for its shard lasted up to ten minutes after an outage."""
    clock = [0.0]
    pools = list(till.bench.pools)
    looks = MoneyLooks(Accounting(pools, late=timedelta(0)), shards=len(pools), now_s=lambda: clock[0])
    order, damaged = till.order(), till.order()
    assert (await looks.look(1)).g is True
    away = postgres_pool(SecretStr("postgresql://nobody@127.0.0.1:1/none"), size_max=1)
    await away.open()
    try:
        pools[till.shard] = away
        assert (await looks.look(2)).g is None
        await till.settling.settle(till.shard, [till.paying(order)])
        clock[0] += 100
        assert (await looks.look(3)).g is None
    finally:
        await away.close()
    pools[till.shard] = till.bench.pools[till.shard]
    verdict = await looks.look(4)
    assert verdict.g is None
    assert verdict.detail[0].startswith("shard 0 was away until lately: ") and "not stored" in verdict.detail[0]
    clock[0] += 101
    assert (await looks.look(5)).g is False, "as long as it was away, and not longer"
    till.store(till.held(order.order_id))
    assert (await looks.look(6)).g is True
    # A contradiction of amounts is no matter of time.
    looks._shards[till.shard].grace_until = clock[0] + 50
    await till.settling.settle(till.shard, [till.paying(damaged), till.paying(damaged)])
    till.store(till.held(damaged.order_id))
    with psycopg.connect(till.dsn) as connection:
        connection.execute("UPDATE refunds SET amount_minor = 1")
    assert (await looks.look(7)).g is False


async def test_a_shard_that_is_away_leaves_the_verdict_unknown_and_hides_no_finding(till: Till) -> None:
    clock = [0.0]
    away = postgres_pool(SecretStr("postgresql://nobody@127.0.0.1:1/none"), size_max=1)
    await away.open()
    pools = list(till.bench.pools)
    pools[3] = away
    looks = MoneyLooks(Accounting(pools, late=timedelta(0)), shards=4, now_s=lambda: clock[0])
    try:
        verdict = await looks.look(1)
        assert verdict.g is None and verdict.detail[0].startswith("shard 3 does not answer")
        order = till.order()
        await till.settling.settle(till.shard, [till.paying(order)])
        assert (await looks.look(2)).g is False, "captured for an order that is not stored"
    finally:
        await away.close()
    looks = looks_of(till, clock)
    with psycopg.connect(till.dsn) as connection:
        connection.execute("DELETE FROM payments")
    assert (await looks.look(1)).g is True
    clock[0] += DEEP_AGE_S_MAX + 1
    looks._deep_every_s = 2 * DEEP_AGE_S_MAX
    assert (await looks.look(2)).g is None, "an old look at everything proves nothing"


async def test_an_old_verdict_does_not_count(till: Till) -> None:
    redis = till.bench.redis
    await publish_money_verdict(redis, {"at_ms": 1000, "G": True})
    raw = await redis.get(topology.MONEY_VERDICT_KEY)
    assert decode_money_verdict(raw, 1000 + VERDICT_AGE_MS_MAX) is True
    assert decode_money_verdict(raw, 1001 + VERDICT_AGE_MS_MAX) is None
    for broken in (None, b"", b"{", b"[]", json.dumps({"at_ms": 1000, "G": 1}).encode()):
        assert decode_money_verdict(broken, 1000) is None
