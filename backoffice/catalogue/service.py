"""Reads products through the cache, and changes them while their cached rows are marked as changing."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from backoffice.caching.cache import Cache
from backoffice.catalogue.store import Product, Products


class ProductMissing(Exception):
    """The product does not exist."""


class VersionConflict(Exception):
    """The product has none of the expected versions."""


class ProductService:
    """`versions` are the expected versions of a change; None accepts any version."""

    def __init__(self, products: Products, cache: Cache[Product]) -> None:
        """Uses them, owns nothing."""
        self._products = products
        self._cache = cache

    async def create(self, fields: dict[str, Any]) -> Product:
        """A new product; SkuTaken."""
        return await self._products.create(fields)

    async def get(self, product_id: UUID) -> Product:
        """The product, possibly from the cache; ProductMissing."""
        product = await self._cache.get(str(product_id), lambda: self._products.get(product_id))
        if product is None:
            raise ProductMissing
        return product

    async def page(self, *, before: UUID | None, active: bool | None, limit: int) -> list[Product]:
        """Products older than `before`, newest first; `active` filters."""
        return await self._products.page(before=before, active=active, limit=limit)

    async def change(self, product_id: UUID, versions: list[int] | None, fields: dict[str, Any]) -> Product:
        """The changed product; ProductMissing, VersionConflict, SkuTaken."""
        async with self._cache.changing(str(product_id)):
            product = await self._products.change(product_id, versions, fields)
        if product is None:
            raise await self._conflict(product_id)
        return product

    async def delete(self, product_id: UUID, versions: list[int] | None) -> None:
        """Delete the product; ProductMissing, VersionConflict. Sales keep their own copy of SKU and price."""
        async with self._cache.changing(str(product_id)):
            deleted = await self._products.delete(product_id, versions)
        if not deleted:
            raise await self._conflict(product_id)

    async def _conflict(self, product_id: UUID) -> ProductMissing | VersionConflict:
        return ProductMissing() if await self._products.get(product_id) is None else VersionConflict()
