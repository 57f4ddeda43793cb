"""Roles, lags and connections of a data tier, from its real servers."""

from __future__ import annotations

from devstack.data_tier import data_tier, in_words
from ops.stack_file import Stack
from tests.fixtures.fix_pair import Tier


def stack_of(tier: Tier) -> Stack:
    return Stack(
        edge_url="", edge_direct_url=None, backoffice_url="", admin={}, redis_url="", cache_url="", catalogue_dsn="",
        shard_dsns=[], queue_url="", event_log_url="", payment_secret="", smtp_url="", mail_folder="", metrics={},
        supervisor=1,
        postgres_servers={
            "postgres-shard-0": tier.pair.primary.dsn(), "postgres-shard-0-replica": tier.pair.standby.dsn(),
            "away": "postgresql://flashsale@127.0.0.1:1/postgres",
        },
        poolers={"pgbouncer-0": tier.pooler.dsn("pgbouncer")},
    )  # fmt: skip


def test_roles_lags_and_connections(tier: Tier) -> None:
    shown = data_tier(stack_of(tier))
    primary, standby = shown["postgres-shard-0"], shown["postgres-shard-0-replica"]
    assert (primary["role"], primary["standby"], primary["sync_state"]) == ("primary", "shard_0_replica", "sync")
    assert primary["lag_s"] >= 0 and primary["connections"] >= 1
    assert (standby["role"], standby["receiving"], standby["lag_s"]) == ("standby", "streaming", None)
    assert shown["pgbouncer-0"]["role"] == "pooler" and shown["pgbouncer-0"]["waiting"] == 0
    assert shown["away"] == {"error": "OperationalError"}
    assert in_words(shown["away"]) == "does not answer: OperationalError"
    assert "sync_state sync" in in_words(primary)
