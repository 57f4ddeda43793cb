"""The reconciler's process, and one judgement on demand.

    python -m workers.reconciler                                      a service: a look every two seconds, by lease
    python -m workers.reconciler --once [--sale ID] [--wait-s 60] [--json]

`--once` looks until every sale is judged, at most for the given time. Exit status: 0 A and B are proved for all sales,
and G for all money, 1 one is violated or not proved, 2 wrong arguments. JSON: the verdict of the sale asked for, or
`{"A", "B", "sales": [verdicts]}`, with `G` and `money`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from functools import partial
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge
from redis.asyncio import Redis

from domain.ids import parse_uuid
from reservation.verdicts import VERDICT_AGE_MS_MAX, publish_money_verdict, publish_verdicts
from runtime.process import fingerprint
from runtime.process.service import Service, run, settings_or_exit
from runtime.process.telemetry import configure_logging
from runtime.redis.clock import now_ms
from runtime.redis.leases import Lease
from workers.consuming import TRANSIENT
from workers.reconciler.looking import Looking
from workers.reconciler.money import EVERY_S as MONEY_EVERY_S
from workers.reconciler.money import MoneyLooks
from workers.reconciler.once import judge_once, print_verdicts
from workers.reconciler.opening import looking_of, open_clients
from workers.reconciler.progress import STORED_WITHIN_S
from workers.rounds import run_rounds

NAME = "reconciler"
MONEY = "reconciler-money"
EVERY_S = 2.0
WAIT_S_MAX = 600.0
DEEP_POLL_S = 1.0

INVARIANT = Gauge("flashsale_invariant", "1 proved, 0 violated, -1 not judged in the last 15 s.", ["sale", "invariant"])
VERIFIED_SEQ = Gauge("flashsale_lane_verified_seq", "Every entry of the lane up to here is stored.", ["lane"])
DEEP_AGE = Gauge("flashsale_deep_look_age_seconds", "Time since all orders of a shard were read.", ["part"])
DEEP_SLICES = Gauge("flashsale_deep_look_slices", "Slices that deep looks have read since the start.")
DEEP_CUT = Gauge("flashsale_deep_look_slices_cut", "Slices that took too long and were read again with fewer rows.")
LOOKS = Counter("flashsale_reconciler_looks", "Looks at all published sales.")


def main() -> None:
    """Parse the command line, then run the service or judge once."""
    options = _parse(sys.argv[1:])
    settings = settings_or_exit(NAME, all_shards=True)
    if options.once:
        configure_logging(NAME, "WARNING")
        try:
            sys.exit(asyncio.run(judge_once(settings, options.sale, options.wait_s, as_json=options.json)))
        except fingerprint.FingerprintMismatch as error:
            print_verdicts([], str(error), one=options.sale is not None, as_json=options.json)
            sys.exit(1)
    run(NAME, settings, serve)


log = structlog.get_logger()


async def serve(service: Service) -> None:
    """Look until the service stops; one process at a time looks."""
    settings = service.settings
    async with open_clients(settings) as (redis, reading, apart, accounting):
        if not await fingerprint.join(redis, service):
            return
        looking = looking_of(reading, apart, kept_s=settings.sale_kept_s)
        leading = Leading()
        look = partial(_publish_look, redis, looking, set(), leading)
        service.background.start(
            NAME, partial(run_rounds, service, redis, role=NAME, every_s=EVERY_S, work=look, life_ms=settings.lease_ms)
        )
        service.background.start("deep look", partial(look_deep, service, looking, leading))
        money = MoneyLooks(accounting, shards=settings.shards)
        work = partial(_publish_money, redis, money)
        service.background.start(
            MONEY,
            partial(
                run_rounds, service, redis, role=MONEY, every_s=MONEY_EVERY_S, work=work, life_ms=settings.lease_ms
            ),
        )
        await service.background.finished()


class Leading:
    """Which lease the quick looks work under: deep looks begin only while it is held."""

    def __init__(self) -> None:
        self.lease: Lease | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process is the one that looks."""
        return self.lease is not None and self.lease.held


async def look_deep(service: Service, looking: Looking, leading: Leading) -> None:
    """Run the deep looks until the service stops, apart from the quick ones: none of them waits for the other."""
    while not await service.tick(DEEP_POLL_S):
        if not leading.is_held:
            continue
        try:
            sales = await looking.sales()
            if sales and looking.deep.is_due(sale.sale_id for sale in sales):
                await looking.deep.run_pass(sales)
        except TRANSIENT as error:
            log.warning("deep look failed", error=f"{type(error).__name__}: {error}")
            await service.pause(EVERY_S)


async def _publish_look(redis: Redis, looking: Looking, shown: set[UUID], leading: Leading, lease: Lease) -> bool:
    leading.lease = lease
    verdicts = await looking.look()
    await publish_verdicts(redis, {verdict.sale_id: verdict.as_document() for verdict in verdicts})
    judged = {verdict.sale_id for verdict in verdicts}
    for sale_id in shown - judged:
        for invariant in ("A", "B"):
            INVARIANT.remove(sale_id, invariant)
    shown.clear()
    shown.update(judged)
    counts_until = time.monotonic() + VERDICT_AGE_MS_MAX / 1000
    for verdict in verdicts:
        for invariant, held in (("A", verdict.a), ("B", verdict.b)):
            INVARIANT.labels(verdict.sale_id, invariant).set_function(partial(_value_until, held, counts_until))
    for lane, progress in looking.progress.items():
        VERIFIED_SEQ.labels(lane).set(progress.verified)
    for part, age_s in looking.deep.parts.ages_s().items():
        DEEP_AGE.labels(part).set_function(partial(_age_s, time.monotonic() - age_s))
    DEEP_SLICES.set(looking.deep.slices)
    DEEP_CUT.set(looking.deep.cut_slices)
    LOOKS.inc()
    return False


async def _publish_money(redis: Redis, looks: MoneyLooks, lease: Lease) -> bool:  # noqa: ARG001 - harmless when doubled
    verdict = await looks.look(await now_ms(redis))
    await publish_money_verdict(redis, verdict.as_document())
    counts_until = time.monotonic() + VERDICT_AGE_MS_MAX / 1000
    INVARIANT.labels("", "G").set_function(partial(_value_until, verdict.g, counts_until))
    return False


def _value_until(held: bool | None, counts_until: float) -> float:
    """The value of the gauge: a verdict that is too old counts as not judged, also when every later look fails."""
    return -1 if held is None or time.monotonic() > counts_until else int(held)


def _age_s(since: float) -> float:
    return time.monotonic() - since


def _sale_id(text: str) -> UUID:
    sale_id = parse_uuid(text)
    if sale_id is None:
        raise argparse.ArgumentTypeError("not a sale id")
    return sale_id


def _wait_s(text: str) -> float:
    wait_s = float(text)
    if not 0 <= wait_s <= WAIT_S_MAX:
        raise argparse.ArgumentTypeError(f"from 0 to {WAIT_S_MAX:.0f} seconds")
    return wait_s


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m workers.{NAME}", description="Judge invariants A and B of published sales."
    )
    parser.add_argument("--once", action="store_true", help="judge once and exit")
    parser.add_argument("--sale", type=_sale_id, help="judge this sale only")
    parser.add_argument(
        "--wait-s", type=_wait_s, default=STORED_WITHIN_S, help="longest wait for entries to be stored (default: 60)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
