"""Sales in the catalogue database. Each change is one transaction with a lock or compare-and-set. Not in Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row, dict_row

from backoffice.sales.model import Item, NewSale, Sale, Stage
from backoffice.stores import Stores
from backoffice.web.idempotency import KeyReused
from domain.sales import STOCK_MAX
from runtime.audit import Action, differences, object_name, record
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "sales.sql")


class ItemsNotSellable(Exception):
    """Items with a product that does not exist, is inactive, or has another currency than the first item."""

    def __init__(self, reasons: dict[int, str]) -> None:
        """`reasons` by the place of the item."""
        super().__init__("; ".join(reasons.values()))
        self.reasons = reasons


class StockTooHigh(Exception):
    """The stock would exceed the range of the counters."""


@dataclass(frozen=True, slots=True)
class LiveSale:
    """A published or loading sale; `settled` if no request can still be working on it."""

    id: UUID
    stage: str
    epoch: int
    version: int
    settled: bool


@dataclass(frozen=True, slots=True)
class Restock:
    """Units added to one SKU, once per key."""

    sale_id: UUID
    idempotency_key: str
    sku_index: int
    quantity: int


@dataclass(frozen=True, slots=True)
class KnownRestock:
    """The restock that an idempotency key was used for; `applied`: its lane has the units."""

    sku: str
    quantity: int
    applied: bool


class Sales:
    """Reads and changes sales, their items and restocks; reads sold units from the shards."""

    def __init__(self, stores: Stores) -> None:
        """Uses the stores' pools, owns nothing."""
        self._catalogue = stores.catalogue
        self._shards = stores.shards

    async def create(self, new: NewSale, *, lane_count: int) -> tuple[UUID, bool]:
        """The id of the sale, and whether this key had created it before. ItemsNotSellable, KeyReused."""
        async with self._catalogue.connection() as connection:
            if new.idempotency_key is not None:
                found = await self._created_before(connection, new)
                if found is not None:
                    return found, True
            currency = await _currency_of(connection, new.items)
            row = {
                "id": new.id,
                "name": new.name,
                "starts_at": new.starts_at,
                "ends_at": new.ends_at,
                "hold_seconds": new.hold_seconds,
                "lane_count": lane_count,
                "lanes_auto": new.lanes == "auto",
                "expected_buyers": new.expected_buyers,
                "currency": currency,
                "idempotency_key": new.idempotency_key,
                "fingerprint": new.fingerprint,
                "created_by": new.created_by,
            }
            if await (await connection.execute(SQL["insert_sale"], row)).fetchone() is None:
                # A concurrent request with the same key; it is committed by now.
                found = await self._created_before(connection, new)
                assert found is not None
                return found, True
            await _insert_items(connection, new.id, new.items)
            facts = audit_facts(new) | {"lane_count": lane_count, "currency": currency}
            await record(connection, Action.SALE_CREATE, object_name("sale", new.id), after=facts)
        return new.id, False

    async def was_created(self, new: NewSale) -> bool:
        """Whether the key created a sale before. KeyReused."""
        async with self._catalogue.connection() as connection:
            return await self._created_before(connection, new) is not None

    async def _created_before(self, connection: AsyncConnection[TupleRow], new: NewSale) -> UUID | None:
        parameters = {"created_by": new.created_by, "idempotency_key": new.idempotency_key}
        row = await (await connection.execute(SQL["find_key"], parameters)).fetchone()
        if row is None:
            return None
        if bytes(row[1]) != new.fingerprint:
            raise KeyReused
        found: UUID = row[0]
        return found

    async def get(self, sale_id: UUID) -> Sale | None:
        """The sale with its items."""
        async with self._catalogue.connection() as connection:
            return await _read(connection, sale_id)

    async def page(self, *, before: UUID | None, limit: int) -> list[Sale]:
        """Sales, newest first."""
        async with self._catalogue.connection() as connection:
            cursor = connection.cursor(row_factory=dict_row)
            rows = await (await cursor.execute(SQL["page"], {"before": before, "limit": limit})).fetchall()
        return [Sale.from_row(row) for row in rows]

    async def change_draft(self, sale: Sale) -> bool:
        """Replace the draft of the same version; False if there is no such version any more. ItemsNotSellable."""
        async with self._catalogue.connection() as connection:
            before = await _read(connection, sale.id)
            currency = await _currency_of(connection, sale.items)
            row = {
                "id": sale.id,
                "version": sale.version,
                "name": sale.name,
                "starts_at": sale.starts_at,
                "ends_at": sale.ends_at,
                "hold_seconds": sale.hold_seconds,
                "lane_count": sale.lane_count,
                "lanes_auto": sale.lanes_auto,
                "expected_buyers": sale.expected_buyers,
                "currency": currency,
            }
            if await (await connection.execute(SQL["change_draft"], row)).fetchone() is None:
                return False
            await connection.execute(SQL["delete_items"], {"sale_id": sale.id})
            await _insert_items(connection, sale.id, sale.items)
            assert before is not None, "compare-and-set found its version"
            old, new = differences(audit_facts(before), audit_facts(sale))
            await record(connection, Action.SALE_CHANGE, object_name("sale", sale.id), before=old, after=new)
        return True

    async def delete_draft(self, sale_id: UUID) -> Sale | None:
        """Delete a draft with its items, a sale of another stage not. The sale before; None if there is none."""
        async with self._catalogue.connection() as connection:
            await connection.execute(SQL["lock"], {"id": sale_id})
            sale = await _read(connection, sale_id)
            if sale is not None and sale.stage is Stage.DRAFT:
                await connection.execute(SQL["delete_items"], {"sale_id": sale_id})
                await connection.execute(SQL["delete_draft"], {"id": sale_id})
                name = object_name("sale", sale_id)
                await record(connection, Action.SALE_DELETE, name, before=audit_facts(sale))
            return sale

    async def start_loading(self, sale: Sale, lanes: tuple[int, ...]) -> bool:
        """Commit the stage `loading` and the stock ledger; False if the draft has changed. ItemsNotSellable."""
        async with self._catalogue.connection() as connection:
            await _currency_of(connection, sale.items)
            row = {"id": sale.id, "version": sale.version, "lanes": list(lanes)}
            if await (await connection.execute(SQL["start_loading"], row)).fetchone() is None:
                return False
            await connection.execute(SQL["fill_ledger"], {"id": sale.id})
            facts = {**audit_facts(sale), "lanes": list(lanes)}
            await record(connection, Action.SALE_PUBLISH, object_name("sale", sale.id), after=facts)
        return True

    async def mark_published(self, sale_id: UUID) -> None:
        """Commit that all lanes are loaded: edges may see the sale."""
        async with self._catalogue.connection() as connection:
            await connection.execute(SQL["mark_published"], {"id": sale_id})

    async def change_published(self, sale_id: UUID, rule: Callable[[Sale], Sale], action: Action) -> Sale | None:
        """Apply the rule to the sale while no other request changes it; the sale afterwards, None if there is none.

        Writes name, window and flags, unless the rule changes nothing. Exceptions of the rule change nothing.
        """
        async with self._catalogue.connection() as connection:
            await connection.execute(SQL["lock"], {"id": sale_id})
            sale = await _read(connection, sale_id)
            wanted = sale and rule(sale)
            if sale is None or wanted is None or wanted == sale:
                return sale
            row = {
                "id": wanted.id,
                "version": wanted.version,
                "name": wanted.name,
                "starts_at": wanted.starts_at,
                "ends_at": wanted.ends_at,
                "paused": wanted.paused,
                "ended": wanted.ended,
            }
            await connection.execute(SQL["change_published"], row)
            old, new = differences(audit_facts(sale), audit_facts(wanted))
            await record(connection, action, object_name("sale", sale_id), before=old, after=new)
            return await _read(connection, sale_id)

    async def live(self, *, settled: timedelta, kept: timedelta, limit: int) -> list[LiveSale]:
        """Sales that edges must know, until `kept` after their end."""
        parameters = {"settled": settled, "kept": kept, "limit": limit}
        async with self._catalogue.single_statements() as connection:
            cursor = connection.cursor(row_factory=class_row(LiveSale))
            return await (await cursor.execute(SQL["live"], parameters)).fetchall()

    async def find_restock(self, sale_id: UUID, key: str) -> KnownRestock | None:
        """The restock that the key was used for before."""
        async with self._catalogue.connection() as connection:
            return await _known_restock(connection, {"sale_id": sale_id, "key": key})

    async def add_restock(self, restock: Restock, *, sku: str, created_by: UUID) -> bool:
        """Commit a restock and the raised ledger; False if the key has done so before. KeyReused, StockTooHigh."""
        parameters = {
            "sale_id": restock.sale_id,
            "key": restock.idempotency_key,
            "sku": sku,
            "sku_index": restock.sku_index,
            "quantity": restock.quantity,
            "created_by": created_by,
            "stock_max": STOCK_MAX,
        }
        async with self._catalogue.connection() as connection:
            if await (await connection.execute(SQL["insert_restock"], parameters)).fetchone() is None:
                known = await _known_restock(connection, parameters)
                if known is None or (known.sku, known.quantity) != (sku, restock.quantity):
                    raise KeyReused
                return False
            if await (await connection.execute(SQL["raise_ledger"], parameters)).fetchone() is None:
                raise StockTooHigh  # rolls back the inserted row
            added = {"sku": sku, "quantity": restock.quantity}
            await record(connection, Action.SALE_RESTOCK, object_name("sale", restock.sale_id), after=added)
            return True

    async def mark_restocked(self, restock: Restock) -> None:
        """Commit that the lane has the units."""
        parameters = {"sale_id": restock.sale_id, "key": restock.idempotency_key}
        async with self._catalogue.connection() as connection:
            await connection.execute(SQL["mark_restocked"], parameters)

    async def unapplied_restocks(self, *, settled: timedelta, limit: int) -> list[Restock]:
        """Restocks that may be missing in their lane, oldest first."""
        async with self._catalogue.single_statements() as connection:
            cursor = connection.cursor(row_factory=class_row(Restock))
            parameters = {"settled": settled, "limit": limit}
            return await (await cursor.execute(SQL["unapplied_restocks"], parameters)).fetchall()

    async def restocked_units(self, sale_id: UUID) -> dict[int, int]:
        """Added units by SKU index."""
        async with self._catalogue.connection() as connection:
            cursor = await connection.execute(SQL["restocked_units"], {"sale_id": sale_id})
            return {row[0]: row[1] for row in await cursor.fetchall()}

    async def sold_units(self, sale_id: UUID) -> Counter[str]:
        """Sold units of all shards by SKU."""
        sold: Counter[str] = Counter()
        for shard in self._shards:
            async with shard.connection() as connection:
                cursor = await connection.execute(SQL["sold_units"], {"sale_id": sale_id})
                sold.update(dict(await cursor.fetchall()))
        return sold


def audit_facts(sale: Sale | NewSale) -> dict[str, Any]:
    """The members of an entry in the audit log."""
    facts = {name: getattr(sale, name) for name in ("name", "starts_at", "ends_at", "hold_seconds", "expected_buyers")}
    if isinstance(sale, Sale):
        facts |= {"lane_count": sale.lane_count, "paused": sale.paused, "ended": sale.ended}
    return facts | {"items": [asdict(item) for item in sale.items]}


async def _read(connection: AsyncConnection[TupleRow], sale_id: UUID) -> Sale | None:
    cursor = connection.cursor(row_factory=dict_row)
    row = await (await cursor.execute(SQL["get"], {"id": sale_id})).fetchone()
    return None if row is None else Sale.from_row(row)


async def _known_restock(connection: AsyncConnection[TupleRow], parameters: dict[str, Any]) -> KnownRestock | None:
    cursor = connection.cursor(row_factory=class_row(KnownRestock))
    return await (await cursor.execute(SQL["find_restock"], parameters)).fetchone()


async def _currency_of(connection: AsyncConnection[TupleRow], items: tuple[Item, ...]) -> str:
    """The common currency of the products, which stay locked until the transaction ends. ItemsNotSellable."""
    cursor = await connection.execute(SQL["products_of"], {"skus": [item.sku for item in items]})
    products = {sku: (currency, active) for sku, currency, active in await cursor.fetchall()}
    first = next((products[item.sku][0] for item in items if item.sku in products), "")
    reasons: dict[int, str] = {}
    for place, item in enumerate(items):
        if item.sku not in products:
            reasons[place] = f"product {item.sku} does not exist"
        elif not products[item.sku][1]:
            reasons[place] = f"product {item.sku} is not active"
        elif products[item.sku][0] != first:
            reasons[place] = f"the currency of product {item.sku} is {products[item.sku][0]}, not {first}"
    if reasons:
        raise ItemsNotSellable(reasons)
    return first


async def _insert_items(connection: AsyncConnection[TupleRow], sale_id: UUID, items: tuple[Item, ...]) -> None:
    columns = {
        "sale_id": sale_id,
        "skus": [item.sku for item in items],
        "stocks": [item.stock for item in items],
        "prices": [item.price_minor for item in items],
        "limits": [item.per_user_limit for item in items],
    }
    await connection.execute(SQL["insert_items"], columns)
