"""Runs the expire script for many orders at once. Decides nothing: the script does, by Redis time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from domain import ids, topology
from domain.outcomes import Transition
from reservation import scripts

BATCH_MAX = 200

EXPIRED = Counter("flashsale_expiry_answers", "Answers of the expire script.", ["found_by", "transition"])
REFUSED = Counter(
    "flashsale_expiry_errors", "Error replies of the expire script: lane state that must not be.", ["found_by"]
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DueOrder:
    """What the script's keys are made from."""

    order_id: UUID
    user_id: UUID
    sale_id: UUID


@dataclass(slots=True)
class Troubles:
    """What a round could not expire: for each reason how many orders, and one of them. There may be thousands a round."""

    found_by: str
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, UUID] = field(default_factory=dict)

    def note(self, reason: str, order: DueOrder) -> None:
        """Count an order."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.examples.setdefault(reason, order.order_id)

    def tell(self) -> None:
        """Log a line for each reason, at the end of the round."""
        for reason, count in self.counts.items():
            example = str(self.examples[reason])
            log.error(
                "orders could not be expired", reason=reason, orders=count, example=example, found_by=self.found_by
            )


async def expire(redis: Redis, orders: Sequence[DueOrder], troubles: Troubles) -> list[Transition | None]:
    """Ask for each order to be expired, in one round trip; None where the script answered with an error.

    At most `BATCH_MAX` orders, so that order placing is not held up. What Redis refuses or does not know goes to
    `troubles`. Raises RedisError when the answers did not come; the orders are asked for again then.
    """
    assert len(orders) <= BATCH_MAX
    answers = await _evaluate(redis, orders)
    if any(isinstance(answer, NoScriptError) for answer in answers):
        await redis.script_load(scripts.EXPIRE.source)
        answers = await _evaluate(redis, orders)
    return [_transition(order, answer, troubles) for order, answer in zip(orders, answers, strict=True)]


async def _evaluate(redis: Redis, orders: Sequence[DueOrder]) -> list[object]:
    pipeline: Any = redis.pipeline(transaction=False)
    script = scripts.EXPIRE
    for order in orders:
        keys = topology.order_change_keys(order.order_id, sale_id=order.sale_id, user_id=order.user_id)
        arguments = (ids.short(order.sale_id), order.order_id.bytes)
        pipeline.execute_command("EVALSHA", script.sha, script.key_count, *keys, *arguments)
    answers: list[object] = await pipeline.execute(raise_on_error=False)
    return answers


def _transition(order: DueOrder, answer: object, troubles: Troubles) -> Transition | None:
    if isinstance(answer, list):
        transition = Transition(int(answer[0]))
        EXPIRED.labels(troubles.found_by, transition.name.lower()).inc()
        if transition is Transition.NOT_FOUND:
            # Lost by Redis, or left behind by a rebuild: the reconciler judges that, we only say so.
            troubles.note("not known to its lane", order)
        return transition
    if isinstance(answer, ResponseError):
        REFUSED.labels(troubles.found_by).inc()
        troubles.note(str(answer), order)
        return None
    assert isinstance(answer, Exception), f"expire answered {answer!r}"
    raise answer
