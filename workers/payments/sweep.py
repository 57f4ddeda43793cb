"""Rounds over a shard's payments: takes up settlings that were interrupted, and compares payments with their orders.

A payment stays `received` when the edge ended between storing it and storing the decision. A captured payment whose
order is not stored as paid after a while shows that Redis lost the decision: it is asked once more, and decides again.
A refund that is due and was not tried for long shows that the queue lost its message: it is told again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import structlog

from payments.ledger import PaymentLedger
from payments.refunds import Refunds
from payments.rows import Payment
from payments.settling import BATCH_MAX, Settled, Settling
from runtime.redis.leases import Lease
from workers.payments import metrics

EVERY_S: Final = 5.0
FORGOTTEN_AFTER: Final = timedelta(hours=2)  # longer than the longest delay between two attempts
CONFIRMED_MAX: Final = 2000  # in one round
FORGOTTEN_MAX: Final = 100  # in one round
SEEN_MAX: Final = 20_000  # payments of one pass

log = structlog.get_logger()


class Sweep:
    """The sweep of one shard; `step` is one round."""

    def __init__(
        self,
        shard: int,
        *,
        settling: Settling,
        ledger: PaymentLedger,
        refunds: Refunds,
        interrupted_after: timedelta,
        unconfirmed_after: timedelta,
        lost_after: timedelta,
        forgotten_after: timedelta | None = FORGOTTEN_AFTER,
    ) -> None:
        """Everything is owned elsewhere. The first three times are settings: `FLASHSALE_PAYMENT_..._S`.

        `forgotten_after` is None where no refunder takes messages.
        """
        self._shard = shard
        self._settling = settling
        self._ledger = ledger
        self._refunds = refunds
        self._interrupted_after = interrupted_after
        self._unconfirmed_after = unconfirmed_after
        self._lost_after = lost_after
        self._forgotten_after = forgotten_after
        self._seen: dict[bool, set[str]] = {False: set(), True: set()}  # event ids of this pass

    async def step(self, lease: Lease) -> bool:  # noqa: ARG002 - the signature of a round; each part is idempotent
        """One round; whether there is more to do at once. A shard at rest costs one statement."""
        confirmed = moved = 0
        opened = await self._ledger.open_work(self._shard)
        if opened.unconfirmed:
            confirmed = await self._ledger.confirm(self._shard, limit=CONFIRMED_MAX)
        if opened.received or opened.unconfirmed:
            moved = await self._look(self._interrupted_after, self._unconfirmed_after, lost=False)
            moved += await self._look(self._lost_after, self._lost_after, lost=True)
        else:
            for seen in self._seen.values():
                seen.clear()
        if opened.refunds and self._forgotten_after is not None:
            await self._tell_again(self._forgotten_after)
        metrics.OPEN.labels(self._shard).set(opened.refunds)
        metrics.REFUSED.labels(self._shard).set(opened.refused)
        metrics.OLDEST_SECONDS.labels(self._shard).set(max(0.0, opened.oldest_refund_s))
        return confirmed == CONFIRMED_MAX or moved == BATCH_MAX

    async def _look(self, interrupted_after: timedelta, unconfirmed_after: timedelta, *, lost: bool) -> int:
        """Finish the next payments, each once before any comes again: some stay as they are for long."""
        shard, ledger, seen = self._shard, self._ledger, self._seen[lost]
        page = await ledger.received_before(shard, age=interrupted_after, limit=BATCH_MAX, but=seen)
        if room := BATCH_MAX - len(page):
            page += await ledger.unconfirmed_before(shard, age=unconfirmed_after, limit=room, but=seen)
        moved = await self._finish(page, lost=lost)
        seen.update(payment.event_id for payment in page)
        if len(page) < BATCH_MAX or len(seen) > SEEN_MAX:
            seen.clear()
        return moved

    async def _finish(self, payments: Sequence[Payment], *, lost: bool) -> int:
        """Settle again; the number of payments that are decided now and were not before."""
        results = await self._settling.finish(self._shard, payments, lost=lost)
        moved = 0
        for payment in payments:
            result = results[payment.event_id]
            metrics.SWEPT.labels(result.name.lower()).inc()
            if result is Settled.UNDECIDED:
                log.warning("payment undecided", order_id=str(payment.order_id), state=payment.state)
            elif (result is Settled.CAPTURED) != (payment.state == "captured"):
                moved += 1
                log.warning("payment settled late", order_id=str(payment.order_id), result=result.name.lower())
        return moved

    async def _tell_again(self, age: timedelta) -> None:
        told = await self._refunds.tell_again(self._shard, age=age, limit=FORGOTTEN_MAX)
        if told:
            metrics.TOLD_AGAIN.inc(told)
            log.warning("refunds told again", shard=self._shard, refunds=told)
