"""`python -m workers.rejecter`: rejects orders that wait in vain for a grant; a lease admits one process at a time."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

from runtime.postgres.pool import POLL_CALL_S_MAX, POLL_UNCHECKED_S, postgres_pool
from runtime.process import fingerprint
from runtime.process.service import Service, run, settings_or_exit
from runtime.redis.client import redis_client
from workers.rejecter.rejecting import EVERY_S, Rejecting
from workers.rounds import run_rounds

NAME = "rejecter"


async def main(service: Service) -> None:
    """Open clients, work until the service stops, close clients."""
    settings = service.settings
    async with AsyncExitStack() as stack:
        redis = redis_client(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        if not await fingerprint.join(redis, service):
            return
        # Two for the catalogue: a rejection holds one while it reads the ledger through the other.
        catalogue = await stack.enter_async_context(postgres_pool(settings.catalogue_dsn, size_max=2))
        shards = [
            await stack.enter_async_context(
                postgres_pool(
                    dsn, size_max=1, autocommit=True, call_s_max=POLL_CALL_S_MAX, unchecked_s=POLL_UNCHECKED_S
                )
            )
            for dsn in settings.shard_dsns
        ]
        rejecting = Rejecting(redis=redis, catalogue=catalogue, shards=shards)
        service.background.start(
            NAME,
            partial(
                run_rounds,
                service,
                redis,
                role=NAME,
                every_s=EVERY_S,
                work=rejecting.round,
                life_ms=settings.lease_ms,
            ),
        )
        await service.background.finished()


if __name__ == "__main__":
    run(NAME, settings_or_exit(NAME), main)
