"""The sweep of a shard's payments: nothing that stays undecided keeps it from the rest."""

from __future__ import annotations

from datetime import timedelta
from typing import cast

from domain.sales import Stock
from payments.rows import Arrival
from payments.settling import BATCH_MAX
from runtime.redis.leases import Lease
from tests.payments.till import Till
from tests.reservation.lane import make_sale
from workers.payments.sweep import Sweep

LEASE = cast(Lease, None)  # a round does not ask it
NOW, LONG = timedelta(0), timedelta(days=1)


async def interrupt(till: Till, **of: object) -> str:
    """A payment whose settling ended after its row was stored; its event id."""
    order = till.order(**of)
    event = till.paying(order)
    arrival = Arrival(
        event.event_id, order.order_id, order.user_id, order.sale_id, event.reference, event.amount_minor,
        event.currency, None,
    )  # fmt: skip
    assert await till.ledger.claim(till.shard, [arrival])
    return event.event_id


async def test_payments_that_stay_undecided_keep_the_sweep_from_no_other(till: Till) -> None:
    closed = make_sale()
    assert till.lane.load(closed, [Stock.fresh(100)]) == 1
    stuck = [await interrupt(till, sale=closed) for _ in range(BATCH_MAX)]
    last = await interrupt(till)
    till.lane.close(0, closed)
    for lost_after in (LONG, NOW):
        sweep = Sweep(
            till.shard, settling=till.settling, ledger=till.ledger, refunds=till.refunds, interrupted_after=NOW,
            unconfirmed_after=NOW, lost_after=lost_after,
        )  # fmt: skip
        for _ in range(2):
            await sweep.step(LEASE)
    states = {event_id: state for event_id, (state, *_) in till.payments().items()}
    assert states == dict.fromkeys(stuck, "received") | {last: "captured"}
