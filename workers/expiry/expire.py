"""Runs the expire script for many orders at once. Decides nothing: the script does, by Redis time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from domain import ids, topology
from domain.outcomes import Transition
from hotpath import scripts

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


async def expire(redis: Redis, orders: Sequence[DueOrder], *, found_by: str) -> list[Transition | None]:
    """Ask for each order to be expired, in one round trip; None where the script answered with an error.

    At most `BATCH_MAX` orders, so that order placing is not held up. `found_by` names the search in metrics and logs.
    Raises RedisError when the answers did not come; the orders are asked for again then.
    """
    assert len(orders) <= BATCH_MAX
    answers = await _evaluate(redis, orders)
    if any(isinstance(answer, NoScriptError) for answer in answers):
        await redis.script_load(scripts.EXPIRE.source)
        answers = await _evaluate(redis, orders)
    return [_transition(order, answer, found_by) for order, answer in zip(orders, answers, strict=True)]


async def _evaluate(redis: Redis, orders: Sequence[DueOrder]) -> list[object]:
    pipeline: Any = redis.pipeline(transaction=False)
    script = scripts.EXPIRE
    for order in orders:
        keys = topology.order_change_keys(order.order_id, sale_id=order.sale_id, user_id=order.user_id)
        arguments = (ids.short(order.sale_id), order.order_id.bytes)
        pipeline.execute_command("EVALSHA", script.sha, script.key_count, *keys, *arguments)
    answers: list[object] = await pipeline.execute(raise_on_error=False)
    return answers


def _transition(order: DueOrder, answer: object, found_by: str) -> Transition | None:
    if isinstance(answer, list):
        transition = Transition(int(answer[0]))
        EXPIRED.labels(found_by, transition.name.lower()).inc()
        if transition is Transition.NOT_FOUND:
            # Redis lost it, or never had it: the reconciler judges that, we only say so.
            log.warning("order to expire is not in Redis", order_id=str(order.order_id), found_by=found_by)
        return transition
    if isinstance(answer, ResponseError):
        REFUSED.labels(found_by).inc()
        log.error("order could not be expired", order_id=str(order.order_id), found_by=found_by, error=str(answer))
        return None
    assert isinstance(answer, Exception), f"expire answered {answer!r}"
    raise answer
