"""Reads and writes products, each change compare-and-set on the version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
from psycopg import errors
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from backoffice.caching.cache import Codec
from backoffice.stores import Stores
from domain import ids
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "products.sql")
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
    """The catalogue database's products."""

    def __init__(self, stores: Stores) -> None:
        """Uses the stores' pools, owns nothing."""
        self._catalogue = stores.catalogue

    async def create(self, fields: dict[str, Any]) -> Product:
        """A new product; SkuTaken."""
        row = {**fields, "id": ids.new_uuid7(), "attributes": Jsonb(fields["attributes"])}
        product = await self._one("insert", row)
        if product is None:
            raise SkuTaken
        return product

    async def get(self, product_id: UUID) -> Product | None:
        """The product with this id."""
        return await self._one("get", {"id": product_id})

    async def page(self, *, before: UUID | None, active: bool | None, limit: int) -> list[Product]:
        """Newest first; `active`: only such."""
        async with self._catalogue.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Product))
            parameters = {"before": before, "active": active, "limit": limit}
            return await (await cursor.execute(SQL["page"], parameters)).fetchall()

    async def change(self, product_id: UUID, versions: list[int] | None, fields: dict[str, Any]) -> Product | None:
        """The changed product, or None when it has none of the versions (None: any will do) or is gone; SkuTaken."""
        row: dict[str, Any] = {name: fields.get(name) for name in _COLUMNS}
        row["attributes"] = Jsonb(fields["attributes"]) if fields.get("attributes") is not None else None
        try:
            return await self._one("update", {**row, "id": product_id, "versions": versions})
        except errors.UniqueViolation as error:
            raise SkuTaken from error

    async def delete(self, product_id: UUID, versions: list[int] | None) -> bool:
        """Whether it was removed; False when it has none of the versions (None: any will do) or is gone."""
        async with self._catalogue.connection() as connection:
            cursor = await connection.execute(SQL["delete"], {"id": product_id, "versions": versions})
            return await cursor.fetchone() is not None

    async def _one(self, statement: str, parameters: dict[str, Any]) -> Product | None:
        async with self._catalogue.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Product))
            return await (await cursor.execute(SQL[statement], parameters)).fetchone()
