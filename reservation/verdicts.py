"""Verdicts on invariants A, B and G, as the reconciler publishes them and reports show them.

A verdict counts for 15 s. An older one proves nothing: the reconciler may have ended or may fail at every look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import orjson
from redis.asyncio import Redis

from domain import topology

VERDICT_AGE_MS_MAX = 15_000
TIME_MS_MAX = 253_402_300_799_999  # the year 9999


@dataclass(frozen=True, slots=True)
class Judged:
    """Whether invariants A and B hold; None: not judged, or the verdict is too old.

    `deep_at_ms`: Redis time at which the reconciler began to read the oldest part of the stored orders that the verdict
    rests on; None if it did not read all of them yet, and for a verdict that does not count.
    """

    a: bool | None = None
    b: bool | None = None
    deep_at_ms: int | None = None

    def deep_age_s(self, now_ms: int) -> float | None:
        """Seconds since `deep_at_ms`, at `now_ms` of Redis time."""
        return None if self.deep_at_ms is None else max(0.0, (now_ms - self.deep_at_ms) / 1000)


async def publish_verdicts(redis: Redis, documents: Mapping[UUID, Mapping[str, Any]]) -> None:
    """Replace the verdicts of these sales. A document has `at_ms` and `deep_at_ms` (Redis time), `A` and `B`."""
    if documents:
        mapping = {str(sale_id): orjson.dumps(document) for sale_id, document in documents.items()}
        # mypy: a mapping is invariant in its key type.
        await redis.hset(topology.VERDICTS_KEY, mapping=mapping)  # type: ignore[arg-type]


async def publish_money_verdict(redis: Redis, document: Mapping[str, Any]) -> None:
    """Replace the verdict on G; the document has `at_ms` (Redis time) and `G`."""
    await redis.set(topology.MONEY_VERDICT_KEY, orjson.dumps(document))


def decode_money_verdict(raw: bytes | None, now_ms: int) -> bool | None:
    """Whether G holds, at `now_ms` (Redis time); None: not judged, too old, or malformed."""
    if raw is None:
        return None
    try:
        document = orjson.loads(raw)
        held, age_ms = document["G"], now_ms - int(document["at_ms"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
    return held if isinstance(held, bool) and abs(age_ms) <= VERDICT_AGE_MS_MAX else None


async def read_verdict(redis: Redis, sale_id: UUID) -> Judged:
    """The verdict of a sale at this moment of Redis time."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.hget(topology.VERDICTS_KEY, str(sale_id))
    pipeline.time()
    raw, (seconds, microseconds) = await pipeline.execute()
    return decode_verdict(cast(bytes | None, raw), int(seconds) * 1000 + int(microseconds) // 1000)


def decode_verdict(raw: bytes | None, now_ms: int) -> Judged:
    """A published verdict as it counts at `now_ms` (Redis time). A malformed one counts as none.

    A verdict from the future is too old as well: the clock of Redis was set back, so its age is unknown.
    """
    if raw is None:
        return Judged()
    try:
        document = orjson.loads(raw)
        a, b, age_ms = document["A"], document["B"], now_ms - int(document["at_ms"])
        deep_at_ms = document.get("deep_at_ms")  # absent in a verdict of an older release
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return Judged()
    if not -VERDICT_AGE_MS_MAX <= age_ms <= VERDICT_AGE_MS_MAX:
        return Judged()
    return Judged(
        a if isinstance(a, bool) else None,
        b if isinstance(b, bool) else None,
        deep_at_ms if type(deep_at_ms) is int and 0 <= deep_at_ms <= TIME_MS_MAX else None,
    )
