"""Runs the expire script for many orders at once. The script decides, by Redis time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import structlog
from prometheus_client import Counter
from redis.exceptions import ResponseError

from domain.outcomes import Transition
from reservation.lane import Lanes

BATCH_MAX = 200  # in one round trip, so that placing orders is not held up

EXPIRED = Counter("flashsale_expiry_answers", "Answers of the expire script.", ["found_by", "transition"])
REFUSED = Counter("flashsale_expiry_errors", "Error replies of the expire script: corrupt lane state.", ["found_by"])

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DueOrder:
    """Ids of an order with an ended hold."""

    order_id: UUID
    user_id: UUID
    sale_id: UUID


@dataclass(slots=True)
class Failures:
    """Orders that a round could not expire: their number and one example for each reason. There may be thousands."""

    found_by: str
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, UUID] = field(default_factory=dict)

    def note(self, reason: str, order: DueOrder) -> None:
        """Count an order."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.examples.setdefault(reason, order.order_id)

    def log(self) -> None:
        """Log a line for each reason, at the end of the round."""
        for reason, count in self.counts.items():
            example = str(self.examples[reason])
            log.error(
                "orders could not be expired", reason=reason, orders=count, example=example, found_by=self.found_by
            )


async def expire(lanes: Lanes, orders: Sequence[DueOrder], failures: Failures) -> list[Transition | None]:
    """Expire at most `BATCH_MAX` orders in one round trip; None where the script answered with an error.

    Error replies and orders unknown to Redis are noted in `failures`. Raises RedisError when the answers did not
    arrive; the caller repeats the call then.
    """
    assert len(orders) <= BATCH_MAX
    answers = await lanes.expire(orders)
    return [_transition(order, answer, failures) for order, answer in zip(orders, answers, strict=True)]


def _transition(order: DueOrder, answer: Transition | ResponseError, failures: Failures) -> Transition | None:
    if isinstance(answer, ResponseError):
        REFUSED.labels(failures.found_by).inc()
        failures.note(str(answer), order)
        return None
    EXPIRED.labels(failures.found_by, answer.name.lower()).inc()
    if answer is Transition.NOT_FOUND:
        # Lost by Redis or not restored by a rebuild. The reconciler judges it; here it is only logged.
        failures.note("not known to its lane", order)
    return answer
