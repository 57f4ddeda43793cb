"""Compares the money here with the money at the provider (invariant G), and both with orders and events (D).

Performs no I/O. Every unit of money is accounted for: the sum of the captured events at the provider is the sum of paid
orders, refunds due and refunds done, to the cent.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from uuid import UUID

from domain.orders import OrderStatus
from domain.payments import PaymentState, RefundState
from domain.topology import Topology
from faults.evidence import Evidence
from faults.history import History
from faults.money import StoredPayment
from payments.providers.port import ProviderEntry

NAMED_MAX = 3  # examples in a finding


def some(items: Sequence[str]) -> str:
    """The first examples, and the number of the others."""
    more = f" and {len(items) - NAMED_MAX} more" if len(items) > NAMED_MAX else ""
    return ", ".join(items[:NAMED_MAX]) + more


class MoneyCheck:
    """One comparison; each method yields texts of findings. A loss of orders excuses nothing: their money goes back."""

    def __init__(self, evidence: Evidence, cluster: Topology) -> None:
        self.money = evidence.money
        self.orders = {row.order_id: row for row in evidence.rows}
        self.in_redis = set(evidence.orders)
        self.cluster = cluster
        self.payments = {payment.event_id: payment for payment in self.money.payments}

    def one_row_each(self) -> Iterator[str]:
        """Each captured event at the provider is one row with its order, amount and currency. There is no other row."""
        at_provider = {entry.id: entry for entry in self.money.captured}
        if missing := [
            f"{entry.id} of order {entry.order_id}" for entry in self.money.captured if entry.id not in self.payments
        ]:
            yield f"{len(missing)} captured events at the provider have no row: {some(missing)}"
        if invented := [event_id for event_id in self.payments if event_id not in at_provider]:
            yield f"{len(invented)} payments are unknown to the provider: {some(invented)}"
        counts = Counter(payment.event_id for payment in self.money.payments)
        if repeated := [event_id for event_id, count in counts.items() if count > 1]:
            yield f"{len(repeated)} events are stored in several rows: {some(repeated)}"
        different = [
            payment.event_id
            for payment in self.money.payments
            if payment.event_id in at_provider and not self._same(payment, at_provider[payment.event_id])
        ]
        if different:
            yield f"{len(different)} payments differ from the provider's ledger: {some(different)}"

    def _same(self, payment: StoredPayment, entry: ProviderEntry) -> bool:
        here = (payment.order_id, payment.amount_minor, payment.currency, payment.shard)
        there = (entry.order_id, entry.amount_minor, entry.currency, self.cluster.shard_of_order(payment.order_id))
        return here == there

    def kept(self) -> Iterator[str]:
        """A payment keeps money for a paid order of exactly that total, and each paid order has exactly one payment."""
        wrong = []
        kept_for: Counter[UUID] = Counter()
        for payment in self.money.payments:
            if payment.state == PaymentState.RECEIVED:
                wrong.append(f"{payment.event_id} is not settled")
            elif payment.kept_minor:
                kept_for[payment.order_id] += 1
                order = self.orders.get(payment.order_id)
                right = (OrderStatus.PAID, payment.kept_minor, payment.currency)
                if order is None or (order.status, order.total_minor, order.currency) != right or not payment.settles:
                    wrong.append(f"{payment.event_id} keeps {payment.kept_minor}")
        if wrong:
            yield f"{len(wrong)} payments keep money of an order that is not paid with it: {some(wrong)}"
        paid = [order for order in self.orders.values() if order.status == OrderStatus.PAID and order.total_minor]
        if unpaid := [
            f"{order.order_id} ({kept_for[order.order_id]})" for order in paid if kept_for[order.order_id] != 1
        ]:
            yield f"{len(unpaid)} paid orders do not have exactly one payment: {some(unpaid)}"

    def refunds(self) -> Iterator[str]:
        """Payments and their refunds agree; refunds done here are the refunds at the provider, each made once."""
        due: Counter[str] = Counter()
        done: Counter[str] = Counter()
        for refund in self.money.refunds:
            (done if refund.state == RefundState.DONE else due)[refund.event_id] += refund.amount_minor
        wrong = [
            payment.event_id
            for payment in self.money.payments
            if (due[payment.event_id], done[payment.event_id]) != (payment.due_minor, payment.refunded_minor)
        ]
        if wrong:
            yield f"{len(wrong)} payments differ from the sum of their refunds: {some(wrong)}"
        if open_ := [str(refund.refund_id) for refund in self.money.refunds if refund.state == RefundState.DUE]:
            yield f"{len(open_)} refunds are still due, with an empty queue: {some(open_)}"
        here: Counter[tuple[str, UUID | None, int, str]] = Counter(
            (str(refund.refund_id), refund.order_id, refund.amount_minor, refund.currency)
            for refund in self.money.refunds
            if refund.state == RefundState.DONE
        )
        there = Counter((entry.id, entry.order_id, entry.amount_minor, entry.currency) for entry in self.money.returned)
        if untold := [refund[0] for refund in (there - here)]:
            yield f"{len(untold)} refunds at the provider are not done here, or others: {some(untold)}"
        if unmade := [refund[0] for refund in (here - there)]:
            yield f"{len(unmade)} refunds that are done here were not made by the provider: {some(unmade)}"

    def sums(self) -> Iterator[str]:
        """Captured at the provider = paid orders + refunds due + refunds done, for each currency."""
        captured: Counter[str] = Counter()
        accounted: Counter[str] = Counter()
        for entry in self.money.captured:
            captured[entry.currency] += entry.amount_minor
        for order in self.orders.values():
            accounted[order.currency] += order.total_minor if order.status == OrderStatus.PAID else 0
        for refund in self.money.refunds:
            accounted[refund.currency] += refund.amount_minor
        for currency in sorted(captured.keys() | accounted.keys()):
            if captured[currency] != accounted[currency]:
                yield (
                    f"{captured[currency]} {currency} (minor units) were captured at the provider, "
                    f"{accounted[currency]} are accounted for"
                )

    def shown(self, history: History) -> Iterator[str]:
        """Orders with payments are marked in Redis for their buyers, and each confirmed payment is at the provider."""
        paid = {payment.order_id for payment in self.money.payments}
        if unmarked := [str(order_id) for order_id in paid & self.in_redis - self.money.marked]:
            yield f"{len(unmarked)} orders with payments have no mark, so that buyers do not see them: {some(unmarked)}"
        captures = Counter(entry.order_id for entry in self.money.captured)
        lost = [
            request.key for request in history.requests
            if request.clicks and sum(captures[order_id] for order_id in request.order_ids) < request.clicks
        ]  # fmt: skip
        if lost:
            yield f"{len(lost)} confirmed payments are not in the provider's ledger: {some(lost)}"

    def told(self, *, forgotten: bool) -> Iterator[str]:
        """At least one event for each change of a payment, equal to the row; equal ids have equal bytes."""
        stored = self._changes()
        seen = defaultdict(set)
        wrong = []
        for event in self.money.events:
            seen[event.id].add(event.digest)
            right = stored.get((event.about, event.kind))
            if right != (event.order_id, event.amount_minor, event.currency):
                wrong.append(event.id)
        named = {(event.about, event.kind) for event in self.money.events}
        wanted = [] if forgotten else [change for change in self._final() if change not in named]
        if wanted:
            yield f"{len(wanted)} changes of payments were never published: {some([':'.join(c) for c in wanted])}"
        if wrong:
            yield f"{len(wrong)} events of payments differ from the stored payments: {some(wrong)}"
        if changed := [event_id for event_id, digests in seen.items() if len(digests) > 1]:
            yield f"{len(changed)} events of payments were published again with other content: {some(changed)}"

    def _changes(self) -> dict[tuple[str, str], tuple[UUID, int, str]]:
        """All changes that may have been told: (event id or refund id, kind) -> order, amount, currency."""
        changes: dict[tuple[str, str], tuple[UUID, int, str]] = {}
        for payment in self.money.payments:
            about = (payment.order_id, payment.amount_minor, payment.currency)
            if payment.settles:
                changes[payment.event_id, PaymentState.CAPTURED] = about
            if payment.due_minor or payment.refunded_minor:
                changes[payment.event_id, PaymentState.REFUND_DUE] = about
        for refund in self.money.refunds:
            if refund.state == RefundState.DONE:
                about = (refund.order_id, refund.amount_minor, refund.currency)
                changes[str(refund.refund_id), PaymentState.REFUNDED] = about
        return changes

    def _final(self) -> Iterator[tuple[str, str]]:
        """Changes that must have been told. A payment that went back may have been captured before, or not."""
        for about, kind in self._changes():
            if kind != PaymentState.CAPTURED or self.payments[about].kept_minor:
                yield about, kind
