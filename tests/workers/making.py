"""Orders and catalogue rows for worker tests, made from a seeded random number generator."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

import psycopg

from domain import ids
from domain.messages import SequencedEntry, encode_orders
from domain.orders import OrderEntry, OrderLine, OrderStatus, encode_entry
from domain.topology import Topology, bucket_of_user
from tests.fixtures.fix_databases import Databases

TOPOLOGY = Topology()
START_MS = 1_790_000_000_000
HOLD_MS = 600_000


@dataclass
class Maker:
    """Makes orders of one sale in one lane and numbers their entries as the lane's scripts would."""

    rng: random.Random
    sale_id: UUID
    lane: int = 1
    seq: int = 0
    log: list[SequencedEntry] = field(default_factory=list)

    def user(self, shard: int) -> UUID:
        """A user of a shard."""
        while True:
            user_id = UUID(int=self.rng.getrandbits(128), version=4)
            if TOPOLOGY.shard_of_user(user_id) == shard:
                return user_id

    def order(
        self,
        *,
        shard: int = 0,
        user_id: UUID | None = None,
        key: str | None = None,
        lines: Sequence[tuple[str, int]] = (("SKU-1", 1),),
    ) -> OrderEntry:
        """A reserved order at version 1; not numbered yet."""
        user_id = user_id or self.user(shard)
        order_id = ids.order_id(
            unix_ms=START_MS, lane=self.lane, bucket=bucket_of_user(user_id), random=self.rng.getrandbits(52)
        )
        return OrderEntry(
            order_id=order_id,
            user_id=user_id,
            sale_id=self.sale_id,
            idempotency_key=key or f"key-{self.rng.getrandbits(64):x}",
            currency="EUR",
            lines=tuple(OrderLine(place, sku, units, 1999) for place, (sku, units) in enumerate(lines)),
            status=OrderStatus.RESERVED,
            version=1,
            epoch=1,
            reserved_at_ms=START_MS,
            expires_at_ms=START_MS + HOLD_MS,
            changed_at_ms=START_MS,
        )

    def numbered(self, entry: OrderEntry) -> SequencedEntry:
        """The entry with the lane's next sequence number."""
        self.seq += 1
        numbered = SequencedEntry(self.lane, self.seq, encode_entry(entry))
        self.log.append(numbered)
        return numbered


def later(entry: OrderEntry, status: OrderStatus) -> OrderEntry:
    """The next version of an order in another state, a second later."""
    return entry.becoming(status, at_ms=entry.changed_at_ms + 1000)


def renamed(entry: OrderEntry, order_id_of: OrderEntry) -> OrderEntry:
    """The same buyer and key under another order's id: which the UNIQUE constraint refuses."""
    return replace(entry, order_id=order_id_of.order_id)


def message(entries: Iterable[SequencedEntry]) -> bytes:
    """A queue message of entries of one lane."""
    listed = list(entries)
    return encode_orders(listed[0].lane, [(entry.lane_seq, entry.entry) for entry in listed])


def stock(databases: Databases, sale_id: UUID, units: dict[str, int]) -> None:
    """The ledger rows that publishing makes."""
    with psycopg.connect(databases.catalogue_dsn) as connection:
        for sku, count in units.items():
            connection.execute(
                "INSERT INTO stock_ledger (sale_id, sku, stock) VALUES (%s, %s, %s)", (sale_id, sku, count)
            )
