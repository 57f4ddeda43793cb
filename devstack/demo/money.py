"""Recounts the money of a sale independently: compares the provider's own ledger with the shards, to the cent."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from ops.stack_file import Stack
from payments.providers.port import ProviderEntry
from payments.providers.simulated import SimulatedProvider
from runtime.postgres.connection import connect_command

SETTLE_S_MAX: Final = 30.0
READ_S_MAX: Final = 60.0  # for all payments of a sale
_EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PAYMENTS = """
    SELECT p.event_id, p.order_id, p.amount_minor, p.currency, p.due_minor, p.refunded_minor, o.status = 1, o.total_minor
    FROM payments p LEFT JOIN orders o ON o.id = p.order_id WHERE p.sale_id = %s AND p.state <> 'received'
"""
_REFUNDS = """
    SELECT r.id, r.amount_minor, r.state = 'done'
    FROM refunds r JOIN payments p ON p.event_id = r.event_id WHERE p.sale_id = %s
"""
_PAID = "SELECT id, total_minor FROM orders WHERE sale_id = %s AND status = 1"


@dataclass(slots=True)
class MoneyRecount:
    """Result; amounts in minor units. `captured_minor` must be the sum of the next three, `missing` and the rest 0."""

    captured: int = 0  # events at the provider
    captured_minor: int = 0
    paid_minor: int = 0  # of paid orders
    due_minor: int = 0
    refunded_minor: int = 0
    paid_orders: int = 0
    refunds: int = 0  # done
    missing: int = 0  # events without a row
    unknown: int = 0  # rows without an event
    repeated: int = 0  # events in several rows
    different: int = 0  # rows that differ from their event
    kept_wrongly: int = 0  # payments that keep money, and do not pay their order exactly
    unpaid: int = 0  # paid orders without exactly one payment
    wrong_refunds: int = 0  # refunds done here or at the provider, and not the same at the other

    @property
    def is_right(self) -> bool:
        """Whether each captured event is exactly one row, and all money is of paid orders, due or refunded."""
        return self.captured_minor == self.paid_minor + self.due_minor + self.refunded_minor and not (
            self.missing
            or self.unknown
            or self.repeated
            or self.different
            or self.kept_wrongly
            or self.unpaid
            or self.wrong_refunds
        )

    @property
    def is_settled(self) -> bool:
        """Whether every event has its row, and no refund is due."""
        return not (self.missing or self.due_minor)

    def as_document(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


def recount_money(stack: Stack, sale_id: UUID) -> MoneyRecount:
    """Compare all money of the provider with that of the sale; waits a while until all of it is where it belongs."""
    deadline = time.monotonic() + SETTLE_S_MAX
    while True:
        result = _recount(asyncio.run(_entries(stack)), stack.shard_dsns, sale_id)
        if (result.is_settled and result.is_right) or time.monotonic() > deadline:
            return result
        time.sleep(0.3)


async def _entries(stack: Stack) -> list[ProviderEntry]:
    assert stack.payment_url is not None and stack.payment_api_key is not None
    provider = SimulatedProvider(url=stack.payment_url, api_key=stack.payment_api_key, webhook_secrets=())
    try:
        return [entry async for entry in provider.entries(_EVER)]
    finally:
        await provider.close()


def _recount(entries: Sequence[ProviderEntry], shard_dsns: Sequence[str], sale_id: UUID) -> MoneyRecount:
    captured = {entry.id: entry for entry in entries if not entry.is_refund}
    returned = {(entry.id, entry.amount_minor) for entry in entries if entry.is_refund}
    result = MoneyRecount(captured=len(captured), captured_minor=sum(entry.amount_minor for entry in captured.values()))
    seen: set[str] = set()
    kept_for: Counter[UUID] = Counter()
    paid: set[UUID] = set()
    done: set[tuple[str, int]] = set()
    for dsn in shard_dsns:
        with connect_command(dsn, autocommit=False, call_s_max=READ_S_MAX) as connection:
            for event_id, order_id, amount, currency, due, refunded, is_paid, total in connection.execute(
                _PAYMENTS, (sale_id,)
            ):
                result.repeated += event_id in seen
                seen.add(event_id)
                entry = captured.get(event_id)
                if entry is None:
                    result.unknown += 1
                elif (entry.order_id, entry.amount_minor, entry.currency) != (order_id, amount, currency):
                    result.different += 1
                if kept := amount - due - refunded:
                    kept_for[order_id] += 1
                    result.kept_wrongly += not is_paid or kept != total
            for refund_id, amount, is_done in connection.execute(_REFUNDS, (sale_id,)):
                if is_done:
                    done.add((str(refund_id), amount))
                    result.refunded_minor += amount
                else:
                    result.due_minor += amount
            for order_id, total in connection.execute(_PAID, (sale_id,)):
                paid.add(order_id)
                result.paid_minor += total
    result.paid_orders, result.refunds = len(paid), len(done)
    result.missing = len(captured.keys() - seen)
    result.unpaid = sum(kept_for[order_id] != 1 for order_id in paid)
    result.wrong_refunds = len(done ^ returned)
    return result
