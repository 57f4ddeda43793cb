"""The simulator's books in SQLite: checkouts, the ledger, and webhooks to deliver. One method is one transaction.

A transaction takes some 50 microseconds and runs in the event loop's thread. The write-ahead log is not synced at each
commit: a killed process loses nothing, a machine that loses power may lose the last moments.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from devstack.payment_simulator.behaviour import Behaviour
from runtime.postgres.sql import load_sql

BYTES_MAX: Final = 8 * 1024**3
PAGE_BYTES: Final = 4096
CHECKPOINT_PAGES: Final = 8192
BUSY_S_MAX: Final = 5.0  # a process that was killed a moment ago may still hold the lock
_PACKAGE: Final = "devstack.payment_simulator"
_SQL = load_sql(_PACKAGE, "books.sql")


@dataclass(frozen=True, slots=True)
class Checkout:
    """A page for an order. `lines`: objects with `sku`, `quantity`, `unit_price_minor`."""

    token: str
    order_id: str
    amount_minor: int
    currency: str
    expires_at_ms: int
    return_url: str
    lines: Sequence[dict[str, Any]]
    declined: bool = False
    captures: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the ledger. `id`: event id of a payment, the shop's refund id of a refund."""

    id: str
    kind: str
    event_id: str
    order_id: str
    amount_minor: int
    currency: str
    at_ms: int
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Webhook:
    """A request to the shop that leaves at `due_ms`."""

    body: bytes
    due_ms: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """A stored webhook that is due."""

    id: int
    body: bytes
    attempts: int


class Books:
    """The books in one file."""

    def __init__(self, path: Path) -> None:
        """Open or create the file, which only its owner reads."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_S_MAX)
        for setting in (
            "journal_mode = WAL", "synchronous = NORMAL", f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
            f"page_size = {PAGE_BYTES}", f"max_page_count = {BYTES_MAX // PAGE_BYTES}",
        ):  # fmt: skip
            self._connection.execute(f"PRAGMA {setting}")
        self._connection.executescript((resources.files(_PACKAGE) / "schema.sql").read_text(encoding="utf-8"))

    def open_checkout(self, checkout: Checkout) -> Checkout:
        """Store a page for an order; the page of this order that was stored first."""
        with self._transaction():
            values = {
                "token": checkout.token, "order_id": checkout.order_id, "amount_minor": checkout.amount_minor,
                "currency": checkout.currency, "expires_at_ms": checkout.expires_at_ms,
                "return_url": checkout.return_url, "lines": json.dumps(list(checkout.lines)),
            }  # fmt: skip
            self._run("add_checkout", values)
            row = self._run("checkout_of_order", {"order_id": checkout.order_id}).fetchone()
        return _checkout(row)

    def checkout(self, token: str) -> Checkout | None:
        """The page of this address."""
        row = self._run("checkout_of_token", {"token": token}).fetchone()
        return None if row is None else _checkout(row)

    def settle(
        self, checkout: Checkout, entries: Sequence[Entry], webhooks: Sequence[Webhook], *, declined: bool
    ) -> None:
        """Store captured payments of a page, and the webhooks that tell of them."""
        with self._transaction():
            outcome = {"token": checkout.token, "captures": len(entries), "declined": int(declined)}
            self._run("count_outcome", outcome)
            for entry in entries:
                self._add(entry)
            for webhook in webhooks:
                self._run("add_delivery", {"body": webhook.body, "due_ms": webhook.due_ms})

    def entry(self, entry_id: str) -> Entry | None:
        """A line of the ledger."""
        row = self._run("find_entry", {"id": entry_id}).fetchone()
        return None if row is None else Entry(*row)

    def refunded_minor(self, event_id: str) -> int:
        """The sum of a payment's refunds."""
        return int(self._run("refunded", {"event_id": event_id}).fetchone()[0])

    def refund(self, entry: Entry) -> None:
        """Store a refund."""
        self._add(entry)

    def count_attempt(self, entry_id: str) -> None:
        """Count a repeated call for a refund."""
        self._run("count_attempt", {"id": entry_id})

    def page(self, *, at_ms: int, seq: int, limit: int) -> list[tuple[Any, ...]]:
        """The ledger after a place: id, kind, order id, amount, currency, time, number in the ledger."""
        return self._run("page_of_entries", {"at_ms": at_ms, "seq": seq, "limit": limit}).fetchall()

    def counts(self) -> dict[str, int]:
        """The sizes of the books."""
        row = self._run("count_entries", {}).fetchone()
        return dict(zip(("payments", "refunds", "webhooks_pending"), row, strict=True))

    def due(self, *, now_ms: int, limit: int) -> list[Delivery]:
        """The webhooks that are due, oldest first."""
        return [Delivery(*row) for row in self._run("due_deliveries", {"now_ms": now_ms, "limit": limit})]

    def next_due_ms(self, *, now_ms: int) -> int | None:
        """The time of the next webhook that is not due yet."""
        found: int | None = self._run("next_due", {"now_ms": now_ms}).fetchone()[0]
        return found

    def conclude(self, delivered: Sequence[int], postponed: Sequence[tuple[int, int]]) -> None:
        """Store the results of webhooks: ids that the shop has, and (id, new time) of those that it does not."""
        with self._transaction():
            for delivery_id in delivered:
                self._run("delivered", {"id": delivery_id})
            for delivery_id, due_ms in postponed:
                self._run("postpone", {"id": delivery_id, "due_ms": due_ms})

    def behaviour(self) -> Behaviour:
        """The stored behaviour."""
        row = self._run("read_behaviour", {}).fetchone()
        return Behaviour() if row is None else Behaviour.stored(json.loads(row[0]))

    def store_behaviour(self, behaviour: Behaviour) -> None:
        """Replace the stored behaviour."""
        self._run("write_behaviour", {"document": json.dumps(behaviour.document())})

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _add(self, entry: Entry) -> None:
        self._run(
            "add_entry",
            {
                "id": entry.id, "kind": entry.kind, "event_id": entry.event_id, "order_id": entry.order_id,
                "amount_minor": entry.amount_minor, "currency": entry.currency, "at_ms": entry.at_ms,
            },
        )  # fmt: skip

    def _run(self, name: str, values: dict[str, Any]) -> sqlite3.Cursor:
        return self._connection.execute(_SQL[name], values)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.rollback()
            raise
        self._connection.commit()


def _checkout(row: Sequence[Any]) -> Checkout:
    token, order_id, amount_minor, currency, expires_at_ms, return_url, lines, declined, captures = row
    return Checkout(
        token, order_id, amount_minor, currency, expires_at_ms, return_url, json.loads(lines), bool(declined), captures
    )
