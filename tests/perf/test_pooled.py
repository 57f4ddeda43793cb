"""The measurement of held clients, small: on the tests' pair."""

from __future__ import annotations

from perf.pooled import measure
from tests.fixtures.fix_pair import Tier

CLIENTS = 40


async def test_held_clients_are_counted_and_asked(tier: Tier) -> None:
    tier.pair.primary.ask("CREATE TABLE load (id bigint GENERATED ALWAYS AS IDENTITY, text text NOT NULL)")
    alone, beside, counted = await measure(tier.pair, tier.pooler, clients=CLIENTS, seconds=0.5)
    assert counted >= CLIENTS
    assert alone.queries == 0 and beside.queries > 0
    assert alone.rows_per_s > 0 and beside.rows_per_s > 0
