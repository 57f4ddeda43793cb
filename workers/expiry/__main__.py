"""`python -m workers.expiry`: a collector per shard, the backstop, the janitor and the rebalancer, each by lease."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

from runtime.postgres.pool import POLL_CALL_S_MAX, POLL_UNCHECKED_S, postgres_pool
from runtime.process import fingerprint
from runtime.process.service import Service, run, settings_or_exit
from runtime.redis.client import redis_client
from workers.expiry import backstop, collector, janitor
from workers.rebalancer.director import Director
from workers.rounds import Round, run_rounds

NAME = "expiry"


async def main(service: Service) -> None:
    """Open clients, work until the service stops, close clients."""
    settings = service.settings
    async with AsyncExitStack() as stack:
        redis = redis_client(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        if not await fingerprint.join(redis, service):
            return
        pools = []
        for dsn in settings.shard_dsns:
            pool = postgres_pool(
                dsn, size_max=2, autocommit=True, call_s_max=POLL_CALL_S_MAX, unchecked_s=POLL_UNCHECKED_S
            )
            pools.append(await stack.enter_async_context(pool))
        roles: list[tuple[str, float, Round]] = [
            (f"expiry-shard-{shard}", collector.EVERY_S, collector.Collector(pool, redis).collect)
            for shard, pool in enumerate(pools)
        ]
        scan = backstop.Backstop(pools, redis, cluster=settings.topology)
        roles.append(("expiry-backstop", backstop.EVERY_S, scan.step))
        roles.append(("expiry-janitor", janitor.EVERY_S, janitor.Janitor(redis, kept_s=settings.sale_kept_s).clear))
        for role, every_s, work in roles:
            service.background.start(
                role,
                partial(run_rounds, service, redis, role=role, every_s=every_s, work=work, life_ms=settings.lease_ms),
            )
        Director(redis, lease_ms=settings.lease_ms).start(service)
        await service.background.finished()


if __name__ == "__main__":
    run(NAME, settings_or_exit(NAME), main)
