"""Products in the catalogue database. Each change is compare-and-set on the version, or on the content for a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
from psycopg import AsyncConnection, Rollback, errors
from psycopg.rows import TupleRow, class_row
from psycopg.types.json import Jsonb

from backoffice.caching.cache import Codec
from backoffice.stores import Stores
from domain import ids
from runtime.audit import Action, NewEntry, differences, object_name, record, record_all
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "products.sql")
BATCH_SQL = load_sql(__package__, "importing.sql")
_COLUMNS = ("sku", "name", "description", "price_minor", "currency", "active")


@dataclass(frozen=True, slots=True)
class Product:
    """A row of `products`."""

    id: UUID
    sku: str
    name: str
    description: str
    price_minor: int
    currency: str
    attributes: dict[str, Any]
    active: bool
    version: int


def _encode(product: Product) -> bytes:
    return orjson.dumps(product)


def _decode(content: bytes) -> Product:
    fields = orjson.loads(content)
    return Product(**{**fields, "id": UUID(fields["id"])})


PRODUCT_CODEC: Codec[Product] = Codec(_encode, _decode, schema=1)


class SkuTaken(Exception):
    """Another product has the SKU."""


class Products:
    """Reads and changes single products."""

    def __init__(self, stores: Stores) -> None:
        """Uses the stores' pools, owns nothing."""
        self._catalogue = stores.catalogue

    async def create(self, fields: dict[str, Any]) -> Product:
        """A new product; SkuTaken."""
        row = {**fields, "id": ids.new_uuid7(), "attributes": Jsonb(fields["attributes"])}
        async with self._catalogue.connection() as connection:
            product = await _one(connection, "insert", row)
            if product is None:
                raise SkuTaken
            await record(connection, Action.PRODUCT_CREATE, _name(product), after=_facts(product))
        return product

    async def get(self, product_id: UUID) -> Product | None:
        """The product; None if it does not exist."""
        async with self._catalogue.connection() as connection:
            return await _one(connection, "get", {"id": product_id})

    async def page(self, *, before: UUID | None, active: bool | None, limit: int) -> list[Product]:
        """Products older than `before`, newest first; `active` filters."""
        async with self._catalogue.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Product))
            parameters = {"before": before, "active": active, "limit": limit}
            return await (await cursor.execute(SQL["page"], parameters)).fetchall()

    async def change(self, product_id: UUID, versions: list[int] | None, fields: dict[str, Any]) -> Product | None:
        """The changed product; None if it has none of `versions` (None: any) or does not exist. SkuTaken."""
        row: dict[str, Any] = {name: fields.get(name) for name in _COLUMNS}
        row["attributes"] = Jsonb(fields["attributes"]) if fields.get("attributes") is not None else None
        try:
            async with self._catalogue.connection() as connection:
                before = await _one(connection, "lock", {"id": product_id})
                product = await _one(connection, "update", {**row, "id": product_id, "versions": versions})
                if before is not None and product is not None:
                    old, new = differences(_facts(before), _facts(product))
                    await record(connection, Action.PRODUCT_CHANGE, _name(product), before=old, after=new)
                return product
        except errors.UniqueViolation as error:
            raise SkuTaken from error

    async def delete(self, product_id: UUID, versions: list[int] | None) -> bool:
        """Whether it was deleted; False if it has none of `versions` (None: any) or does not exist."""
        async with self._catalogue.connection() as connection:
            product = await _one(connection, "delete", {"id": product_id, "versions": versions})
            if product is None:
                return False
            await record(connection, Action.PRODUCT_DELETE, _name(product), before=_facts(product))
            return True


async def _one(connection: AsyncConnection[TupleRow], statement: str, parameters: dict[str, Any]) -> Product | None:
    cursor = connection.cursor(row_factory=class_row(Product))
    return await (await cursor.execute(SQL[statement], parameters)).fetchone()


def _name(product: Product) -> str:
    return object_name("product", product.id)


def _facts(product: Product) -> dict[str, Any]:
    """The members of an entry in the audit log."""
    return {name: getattr(product, name) for name in (*_COLUMNS, "attributes")}


@dataclass(frozen=True, slots=True)
class Known:
    """An existing product of a batch; `differs`: its item would change it."""

    id: UUID
    differs: bool


class ProductBatches:
    """Creates and changes many products in one transaction."""

    def __init__(self, stores: Stores) -> None:
        """Uses the stores' pools, owns nothing."""
        self._catalogue = stores.catalogue

    async def compare(self, items: list[dict[str, Any]]) -> dict[str, Known]:
        """The existing products of a batch, by SKU."""
        async with self._catalogue.connection() as connection:
            cursor = await connection.execute(BATCH_SQL["compare"], {"items": Jsonb(items)})
            return {sku: Known(product_id, differs) for sku, product_id, differs in await cursor.fetchall()}

    async def upsert(
        self, items: list[dict[str, Any]], *, changing: Sequence[UUID], dry_run: bool, stop: bool
    ) -> dict[str, str]:
        """Outcomes of the written items by SKU. `changing`: the products that may change.

        Missing in the result are overtaken items: their product was created or changed since `compare`. With `stop`,
        items behind the first overtaken one are not written either.
        """
        rows = [{**item, "id": str(ids.new_uuid7())} for item in items]
        async with (
            self._catalogue.connection() as connection,
            connection.transaction(force_rollback=dry_run),
        ):
            before = await _locked(connection, items)
            written: dict[str, str] = {}
            while rows:
                async with connection.transaction() as attempt:
                    parameters = {"items": Jsonb(rows), "changing": list(changing)}
                    cursor = await connection.execute(BATCH_SQL["upsert"], parameters)
                    outcomes: dict[str, str] = dict(await cursor.fetchall())
                    first = next((place for place, row in enumerate(rows) if outcomes[row["sku"]] == "overtaken"), None)
                    if first is None or not stop:
                        written = {sku: outcome for sku, outcome in outcomes.items() if outcome != "overtaken"}
                        break
                    # Roll back and write only the rows before it; fewer rows each time, so the loop ends.
                    rows = rows[:first]
                    raise Rollback(attempt)
            if not dry_run:
                await _record_batch(connection, rows, written, before)
            return written


async def _locked(connection: AsyncConnection[TupleRow], items: list[dict[str, Any]]) -> dict[str, Product]:
    """The existing products of a batch by SKU, locked."""
    cursor = connection.cursor(row_factory=class_row(Product))
    await cursor.execute(BATCH_SQL["lock"], {"skus": [item["sku"] for item in items]})
    return {product.sku: product for product in await cursor.fetchall()}


async def _record_batch(
    connection: AsyncConnection[TupleRow],
    rows: list[dict[str, Any]],
    written: dict[str, str],
    before: dict[str, Product],
) -> None:
    entries = []
    for row in rows:
        if written.get(row["sku"]) not in ("created", "updated"):
            continue
        given = {name: value for name, value in row.items() if name != "id" and value is not None}
        known = before.get(row["sku"])
        old, new = (None, given) if known is None else differences(_facts(known), given)
        about = object_name("product", row["id"] if known is None else known.id)
        entries.append(NewEntry(action=Action.PRODUCT_IMPORT, object=about, before=old, after=new))
    await record_all(connection, entries)
