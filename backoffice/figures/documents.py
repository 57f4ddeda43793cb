"""Figures as the JSON of an event, with rates computed from successive figures. Performs no I/O.

{"at": "2026-01-01T00:00:00.000Z", "sales": [...], "lanes": [...], "queues": [...], "outboxes": [...], ...}
"""

from __future__ import annotations

import contextlib
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any

from backoffice.figures.store import Figures, SaleFigures
from backoffice.web.fields import format_time

RATE_WINDOW_S = 5.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Rates:
    """Growth per second of named counts over the last seconds. Bounded by the names of the last call."""

    def __init__(self) -> None:
        """No counts yet."""
        self._seen: dict[str, deque[tuple[float, int]]] = {}

    def per_s(self, counts: dict[str, int], now_s: float) -> dict[str, float | None]:
        """The growth of each count per second; None for a new name. Forgets names that are missing."""
        self._seen = {name: self._seen.get(name, deque()) for name in counts}
        return {name: self._rate(self._seen[name], count, now_s) for name, count in counts.items()}

    @staticmethod
    def _rate(seen: deque[tuple[float, int]], count: int, now_s: float) -> float | None:
        if seen and count < seen[-1][1]:
            seen.clear()  # the count started again: Redis was emptied
        seen.append((now_s, count))
        while now_s - seen[0][0] > RATE_WINDOW_S:
            seen.popleft()
        since_s, before = seen[0]
        return None if since_s == now_s else round((count - before) / (now_s - since_s), 1)


def figures_document(figures: Figures, rates: Rates, *, now_s: float) -> dict[str, Any]:
    """The data of an event; `now_s` is monotonic."""
    counts = {f"{kind} {sale.definition.sale_id}": count for sale in figures.sales for kind, count in _counts(sale)}
    growth = rates.per_s(counts, now_s)
    return {
        "at": _time(figures.at_ms) if figures.at_ms is not None else None,
        "sales": [_sale_document(sale, growth) for sale in figures.sales],
        "sales_left_out": figures.left_out,
        "invariants": {"G": figures.verdict_g},
        "lanes": None
        if figures.unrelayed is None
        else [
            {"lane": lane, "unrelayed": count, "age_s": round(age_s, 1)}
            for lane, (count, age_s) in enumerate(figures.unrelayed)
        ],
        "queues": None
        if figures.queues is None
        else [
            {"shard": shard, "messages": queue.depth.messages, "retrying": queue.depth.retrying, "dead": queue.dead}
            for shard, queue in enumerate(figures.queues)
        ],
        "outboxes": [
            None if outbox is None else {"shard": shard, "rows": outbox[0], "age_s": round(outbox[1], 1)}
            for shard, outbox in enumerate(figures.outboxes)
        ],
        "dead_letters": figures.dead,
        "unavailable": list(figures.unavailable),
    }


def _counts(sale: SaleFigures) -> tuple[tuple[str, int], ...]:
    return ("accepted", sale.accepted), ("refused", sum(sale.refused.values()))


def _sale_document(sale: SaleFigures, growth: dict[str, float | None]) -> dict[str, Any]:
    definition = sale.definition
    sale_id = str(definition.sale_id)
    items: list[dict[str, Any]] = [{"sku": item.sku} for item in definition.items]
    for item, stock in zip(items, sale.stock or (), strict=False):
        item |= {
            "allotted": stock.allotted,
            "available": max(0, stock.unsold),
            "reserved": stock.reserved,
            "paid": stock.paid,
            "rejected": stock.rejected,
        }
    return {
        "id": sale_id,
        "name": definition.name,
        "state": sale.state.value,
        "starts_at": _time(definition.starts_at_ms),
        "ends_at": _time(definition.ends_at_ms),
        "stock_known": sale.stock is not None,
        "items": items,
        "accepted": sale.accepted,
        "accepted_per_s": growth[f"accepted {sale_id}"],
        "refused": dict(sale.refused),
        "refused_per_s": growth[f"refused {sale_id}"],
        "invariants": {"A": sale.verdict_a, "B": sale.verdict_b},
        "deep_look_age_s": sale.deep_look_age_s,
    }


def _time(unix_ms: int) -> str:
    with contextlib.suppress(OverflowError):
        return format_time(_EPOCH + timedelta(milliseconds=unix_ms))
    return "9999-12-31T23:59:59.999Z"
