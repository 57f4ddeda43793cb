"""The figures of analytics compared with the shards' rows (a part of invariant D). Performs no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from uuid import UUID

from domain.orders import OrderStatus
from faults.evidence import StoredOrder


def compare_figures(
    figures: Mapping[str, int] | None, rows: Iterable[StoredOrder], statuses: Mapping[tuple[UUID, int], int]
) -> Iterator[str]:
    """Texts of findings. `figures` are the sums of the sale; `statuses` are the stored ones by order and version."""
    if figures is None:
        return
    expected = _expected(rows, statuses)
    wrong = [
        f"{name} {figures.get(name, 0)} instead of {expected[name]}"
        for name in sorted(figures.keys() | expected.keys())
        if figures.get(name, 0) != expected[name]
    ]
    if wrong:
        yield f"the figures of analytics differ from the stored orders: {', '.join(wrong)}"


def _expected(rows: Iterable[StoredOrder], statuses: Mapping[tuple[UUID, int], int]) -> Counter[str]:
    by_id = {row.order_id: row for row in rows}
    expected: Counter[str] = Counter()
    for order_id, status in {(order_id, status) for (order_id, _), status in statuses.items()}:
        row = by_id.get(order_id)
        units = sum(quantity for _, quantity in row.lines) if row else 0
        total = row.total_minor if row else 0
        if status == OrderStatus.RESERVED:
            expected += Counter(orders=1, units=units)
        elif status == OrderStatus.PAID:
            expected += Counter(paid=1, paid_units=units, revenue_minor=total)
        else:
            expected[OrderStatus(status).label] += 1
    return expected
