"""`python -m workers.payments`: refunders, a sweep of each shard, and the comparison with the provider's ledger.

Sweeps and comparison run under leases of their own. Composition root only.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial

from payments.both_ledgers import BothLedgers
from payments.ledger import PaymentLedger
from payments.providers import open_provider
from payments.refunds import Refunds
from payments.settling import Settling
from runtime.dead_letters import open_dead_letters
from runtime.postgres.pool import postgres_pool
from runtime.process import fingerprint
from runtime.process.service import Service, run, settings_or_exit
from runtime.queue import open_queue
from runtime.redis.client import redis_client
from workers.payments import comparison, sweep
from workers.payments.refunder import Refunder
from workers.rounds import run_rounds

NAME = "payments"
REFUNDERS = 2  # calls to the provider at once
COMPARISON_LOOK_S = 10.0  # between looks whether a comparison is due


async def main(service: Service) -> None:
    """Open clients, work until told to stop, close clients."""
    settings = service.settings
    async with AsyncExitStack() as stack:
        redis = redis_client(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        if not await fingerprint.join(redis, service):
            return
        pools = [
            await stack.enter_async_context(postgres_pool(dsn, size_max=REFUNDERS + 2)) for dsn in settings.shard_dsns
        ]
        ledger = PaymentLedger(pools, settings.topology, provider=settings.payment_provider)
        refunds, settling = Refunds(pools, settings.topology), Settling(redis, ledger)
        provider = open_provider(settings)
        for shard in range(len(pools)):
            role = f"payments-shard-{shard}"
            work = sweep.Sweep(
                shard,
                settling=settling,
                ledger=ledger,
                refunds=refunds,
                interrupted_after=timedelta(seconds=settings.payment_interrupted_s),
                unconfirmed_after=timedelta(seconds=settings.payment_unconfirmed_s),
                lost_after=timedelta(seconds=settings.payment_lost_s),
                forgotten_after=None if provider is None else sweep.FORGOTTEN_AFTER,
            ).step
            service.background.start(
                role,
                partial(
                    run_rounds, service, redis, role=role, every_s=sweep.EVERY_S, work=work, life_ms=settings.lease_ms
                ),
            )
        if provider is not None:
            stack.push_async_callback(provider.close)
            queue = open_queue(settings.queue_url, settings.topology.queues, length_max=settings.queue_length_max)
            stack.push_async_callback(queue.close)
            letters = open_dead_letters(settings.catalogue_dsn, letters_max=settings.dead_letters_max)
            stack.push_async_callback(letters.close)
            for number in range(REFUNDERS):
                refunder = Refunder(queue=queue, letters=letters, refunds=refunds, provider=provider, service=service)
                service.background.start(f"refunder {number}", refunder.run)
            hourly = comparison.HourlyComparison(BothLedgers(pools, provider))
            service.background.start(
                comparison.ROLE,
                partial(
                    run_rounds, service, redis, role=comparison.ROLE, every_s=COMPARISON_LOOK_S, work=hourly.step,
                    life_ms=settings.lease_ms, round_s_max=comparison.ROUND_S_MAX,
                ),
            )  # fmt: skip
        await service.background.finished()


if __name__ == "__main__":
    run(NAME, settings_or_exit(NAME), main)
