"""Counts of orders per sale, accepted and refused by code: collected in memory, added in Redis about once a second.

They are statistics for the sale's report and the staff page. A killed edge loses at most the last second.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from domain import topology
from domain.problems import Problem
from edge.sale_directory import SaleDirectory
from hotpath.counters import Verdict
from runtime.process.tasks import until_tick

_log = structlog.get_logger("edge.refusals")

PERIOD_S = 1.0
PROBLEM_OF_VERDICT: Final[dict[int, Problem]] = {
    Verdict.KEY_REUSED: Problem.IDEMPOTENCY_KEY_REUSED,
    Verdict.STALE: Problem.DEPENDENCY_UNAVAILABLE,
    Verdict.NOT_OPEN: Problem.SALE_NOT_OPEN,
    Verdict.ENDED: Problem.SALE_ENDED,
    Verdict.RATE_LIMITED: Problem.RATE_LIMITED,
    Verdict.TOO_FAST: Problem.RATE_LIMITED,
    Verdict.PURCHASE_LIMIT: Problem.PURCHASE_LIMIT_EXCEEDED,
    Verdict.SOLD_OUT: Problem.SOLD_OUT,
    Verdict.STREAM_FULL: Problem.OVERLOADED,
    Verdict.UNITS_ELSEWHERE: Problem.OVERLOADED,
    Verdict.OVERLOADED: Problem.OVERLOADED,
    Verdict.UNAVAILABLE: Problem.DEPENDENCY_UNAVAILABLE,
    Verdict.UNKNOWN: Problem.OUTCOME_UNKNOWN,
}


class Refusals:
    """Writes the tallies of the directory's sales to Redis."""

    def __init__(self, redis: Redis, directory: SaleDirectory) -> None:
        self._redis = redis
        self._directory = directory
        # (key, field) -> count not written yet; bounded by the directory's sales times the codes.
        self._unflushed: Counter[tuple[str, str]] = Counter()

    async def run(self) -> None:
        """Flush for ever. Cancel to stop, then call `flush` once more."""
        while True:
            await asyncio.sleep(until_tick(PERIOD_S))
            await self.flush()

    async def flush(self) -> None:
        """Add the counts since the last flush. Keeps them for the next flush when Redis does not answer."""
        for sale_id, tally in self._directory.tallies():
            for verdict, count in tally.take().items():
                problem = PROBLEM_OF_VERDICT.get(verdict)
                if problem is not None:
                    self._unflushed[topology.REFUSED_KEY_PREFIX + sale_id, problem.value] += count
                elif verdict == Verdict.ACCEPTED:
                    self._unflushed[topology.ACCEPTED_KEY, sale_id] += count
        if not self._unflushed:
            return
        flushing, self._unflushed = self._unflushed, Counter()
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for (key, field), count in flushing.items():
                    pipeline.hincrby(key, field, count)
                answers = await pipeline.execute(raise_on_error=False)
        except (TimeoutError, RedisError, OSError) as error:
            answers = [error] * len(flushing)
        failed = [error for error in answers if isinstance(error, Exception)]
        if failed:
            for (counted, count), answer in zip(flushing.items(), answers, strict=True):
                if isinstance(answer, Exception):
                    self._unflushed[counted] += count
            _log.warning("tallies_not_flushed", error=str(failed[0]), counts=len(failed))
