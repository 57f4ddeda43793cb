"""The reconciler's process, and one judgement on demand.

    python -m workers.reconciler                                      a service: a look every two seconds, by lease
    python -m workers.reconciler --once [--sale ID] [--wait-s 60] [--json]

`--once` looks until every sale is judged, at most for the given time. Exit status: 0 A and B are proved for all sales,
1 one is violated or not proved, 2 wrong arguments. JSON: the verdict of the sale asked for, or
`{"A", "B", "sales": [verdicts]}`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from uuid import UUID

import orjson
import structlog
from prometheus_client import Counter, Gauge
from redis.asyncio import Redis

from domain.ids import parse_uuid
from reservation.verdicts import VERDICT_AGE_MS_MAX, publish_verdicts
from runtime.dead_letters import PostgresDeadLetters
from runtime.postgres.pool import postgres_pool
from runtime.process import fingerprint
from runtime.process.service import Service, run, settings_or_exit
from runtime.process.settings import Settings
from runtime.process.telemetry import configure_logging
from runtime.redis.client import redis_client
from runtime.redis.leases import Lease
from workers.consuming import TRANSIENT
from workers.reconciler.deep import DEEP_EVERY_S, DEEP_SHARE_MAX, DeepLooks
from workers.reconciler.looking import Looking
from workers.reconciler.progress import STORED_WITHIN_S, LaneProgress
from workers.reconciler.reading import CALL_S_MAX, Reading
from workers.reconciler.verdict import Verdict
from workers.rounds import run_rounds

NAME = "reconciler"
EVERY_S = 2.0
ONCE_EVERY_S = 0.5
WAIT_S_MAX = 600.0
DEEP_POLL_S = 1.0
DEEP_SHARE_ONCE = 0.5  # of one judgement: an operator waits for it

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
            sys.exit(asyncio.run(_judge_once(settings, options.sale, options.wait_s, as_json=options.json)))
        except fingerprint.FingerprintMismatch as error:
            _print([], str(error), one=options.sale is not None, as_json=options.json)
            sys.exit(1)
    run(NAME, settings, serve)


log = structlog.get_logger()


async def serve(service: Service) -> None:
    """Look until the service stops; one process at a time looks."""
    settings = service.settings
    async with _clients(settings) as (redis, reading, apart):
        if not await fingerprint.check_when_reachable(redis, settings.topology, service.pause):
            return
        looking = _looking(reading, apart, kept_s=settings.sale_kept_s)
        leading = Leading()
        look = partial(_publish_look, redis, looking, set(), leading)
        service.background.start(
            NAME, partial(run_rounds, service, redis, role=NAME, every_s=EVERY_S, work=look, life_ms=settings.lease_ms)
        )
        service.background.start("deep look", partial(look_deep, service, looking, leading))
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


def _value_until(held: bool | None, counts_until: float) -> float:
    """The value of the gauge: a verdict that is too old counts as not judged, also when every later look fails."""
    return -1 if held is None or time.monotonic() > counts_until else int(held)


def _age_s(since: float) -> float:
    return time.monotonic() - since


def _looking(
    reading: Reading,
    apart: Reading,
    *,
    kept_s: int,
    stored_within_s: float = STORED_WITHIN_S,
    deep_every_s: float = DEEP_EVERY_S,
    deep_share_max: float = DEEP_SHARE_MAX,
) -> Looking:
    """Quick looks by `reading`, deep looks by `apart`."""
    progress: dict[int, LaneProgress] = {}
    deep = DeepLooks(apart, progress, every_s=deep_every_s, share_max=deep_share_max)
    return Looking(reading, deep, progress=progress, kept_s=kept_s, stored_within_s=stored_within_s)


async def _judge_once(settings: Settings, sale_id: UUID | None, wait_s: float, *, as_json: bool) -> int:
    async with _clients(settings) as (redis, reading, apart):
        looking = _looking(
            reading,
            apart,
            kept_s=settings.sale_kept_s,
            stored_within_s=wait_s,
            deep_every_s=0.0,
            deep_share_max=DEEP_SHARE_ONCE,
        )
        settled_looks = 0
        deadline = time.monotonic() + wait_s
        verdicts: list[Verdict] = []
        nothing = "no published sale in Redis"
        if sale_id is not None:
            nothing = f"sale {sale_id} is not in Redis: check the id; `flashsale rebuild` restores a lost sale"
        problem = nothing
        is_checked = False
        while True:
            try:
                if not is_checked:
                    await fingerprint.check(redis, settings.topology)
                    is_checked = True
                problem = nothing
                verdicts = await _judge(looking, sale_id)
            except TRANSIENT as error:
                verdicts, problem = [], f"{type(error).__name__}: {error}"
            settled = bool(verdicts) and all(v.a is not None and v.b is not None for v in verdicts)
            settled_looks = settled_looks + 1 if settled else 0
            # A settled verdict is checked by one more deep look: the deep look before it may have been too early.
            # The last look is after the deadline, so that entries which had the whole time to be stored are judged.
            if settled_looks == 2 or (not settled and time.monotonic() > deadline):
                break
            if settled:
                looking.deep.demand()
                continue
            await asyncio.sleep(min(ONCE_EVERY_S, max(0.01, deadline - time.monotonic())))
    _print(verdicts, problem, one=sale_id is not None, as_json=as_json)
    return 0 if verdicts and all(verdict.is_proved for verdict in verdicts) else 1


async def _judge(looking: Looking, sale_id: UUID | None) -> list[Verdict]:
    """A deep look if one is due, then a quick one. The deep look compares with the watermarks."""
    sales = await looking.sales(only=sale_id)
    await looking.follow(sales)
    if sales and looking.deep.is_due(sale.sale_id for sale in sales):
        await looking.deep.run_pass(sales)
    return await looking.look(only=sale_id)


def _print(verdicts: Sequence[Verdict], problem: str, *, one: bool, as_json: bool) -> None:
    documents = [verdict.as_document() for verdict in verdicts]
    if as_json:
        summary = {name: _all_of([document[name] for document in documents]) for name in ("A", "B")}
        answer = {**summary, "sales": documents} if documents and not one else documents[0] if documents else None
        sys.stdout.write(orjson.dumps(answer or {"A": None, "B": None, "detail": [problem]}).decode() + "\n")
        return
    words = {True: "proved", False: "VIOLATED", None: "not proved yet"}
    for document in documents:
        sys.stdout.write(f"sale {document['sale_id']}: A {words[document['A']]}, B {words[document['B']]}\n")
        for line in document["detail"]:
            sys.stdout.write(f"  {line}\n")
    if not documents:
        sys.stdout.write(f"{problem}\n")


def _all_of(values: Sequence[bool | None]) -> bool | None:
    if False in values:
        return False
    return None if None in values else True


@asynccontextmanager
async def _clients(settings: Settings) -> AsyncIterator[tuple[Redis, Reading, Reading]]:
    """Redis, the reading of the quick looks, and that of the deep looks with connections of its own."""
    async with AsyncExitStack() as stack:
        redis = redis_client(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        readings = []
        for _ in range(2):
            catalogue, *shards = [
                await stack.enter_async_context(postgres_pool(dsn, size_max=2, call_s_max=CALL_S_MAX))
                for dsn in (settings.catalogue_dsn, *settings.shard_dsns)
            ]
            letters = PostgresDeadLetters(catalogue, letters_max=settings.dead_letters_max)
            readings.append(Reading(redis=redis, catalogue=catalogue, shards=shards, letters=letters))
        yield redis, readings[0], readings[1]


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
