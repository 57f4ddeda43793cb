"""Recounts a sale independently: compares every 202 that the driver noted with the rows of the shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from domain.topology import Topology
from runtime.postgres.connection import connect_command

READ_S_MAX = 60.0  # for all orders of a sale
_STORED = "SELECT count(*) FROM orders WHERE sale_id = %s"
_AUDIT = "SELECT order_id, user_id, sku, quantity, status FROM audit_orders WHERE sale_id = %s"
_HOLDING = ("reserved", "paid")


@dataclass(frozen=True, slots=True)
class Promise:
    """One 202 that a buyer received."""

    order_id: UUID
    user_id: UUID
    sku: str


@dataclass(slots=True)
class Recount:
    """Result. All counts except the first three must be zero."""

    promised: int = 0
    stored: int = 0
    promised_and_stored: int = 0
    missing: int = 0  # a 202 without its row
    different: int = 0  # a row that differs from its 202
    unasked: int = 0  # a row without a 202
    repeated: int = 0  # one id in several rows or in two 202s
    misplaced: int = 0  # a row in another shard than its id names
    oversold: int = 0  # units held beyond the stock
    sold: dict[str, int] = field(default_factory=dict)  # SKU -> units held

    @property
    def is_right(self) -> bool:
        """Whether every 202 is stored once, in its shard and unchanged, and no unit is sold twice."""
        return not (
            self.missing or self.different or self.unasked or self.repeated or self.misplaced or self.oversold
        )  # fmt: skip


def read_promises(path: Path, *, users: Sequence[UUID], skus: Sequence[str]) -> list[Promise]:
    """Read the driver's list: order id, index of the user, index of the SKU."""
    promises = []
    for line in path.read_text(encoding="ascii").splitlines():
        order, user, sku = line.split("\t")
        promises.append(Promise(UUID(order), users[int(user)], skus[int(sku)]))
    return promises


def stored_orders(shard_dsns: Sequence[str], sale_id: UUID) -> int:
    """Number of a sale's orders in all shards."""
    count = 0
    for dsn in shard_dsns:
        with connect_command(dsn, autocommit=False, call_s_max=READ_S_MAX) as connection:
            row = connection.execute(_STORED, (sale_id,)).fetchone()
            count += row[0] if row else 0
    return count


def recount(
    promises: Sequence[Promise], *, shard_dsns: Sequence[str], sale_id: UUID, stock: dict[str, int], topology: Topology
) -> Recount:
    """Compare the 202s with the stored orders. Every order must have one line of one unit."""
    told = {promise.order_id: promise for promise in promises}
    result = Recount(promised=len(promises), repeated=len(promises) - len(told))
    held: Counter[str] = Counter()
    seen: set[UUID] = set()
    for shard, dsn in enumerate(shard_dsns):
        with connect_command(dsn, autocommit=False, call_s_max=READ_S_MAX) as connection:
            for order_id, user_id, sku, quantity, status in connection.execute(_AUDIT, (sale_id,)):
                result.stored += 1
                result.repeated += order_id in seen
                seen.add(order_id)
                result.misplaced += topology.shard_of_order(order_id) != shard
                promise = told.get(order_id)
                if promise is None:
                    result.unasked += 1
                elif (promise.user_id, promise.sku, 1) != (user_id, sku, quantity) or status not in _HOLDING:
                    result.different += 1
                if status in _HOLDING:
                    held[sku] += quantity
    result.promised_and_stored = len(told.keys() & seen)
    result.missing = len(told.keys() - seen)
    result.oversold = sum(max(0, units - stock.get(sku, 0)) for sku, units in held.items())
    result.sold = dict(sorted(held.items()))
    return result
