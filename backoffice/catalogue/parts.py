"""The composition of this subject."""

from __future__ import annotations

from backoffice.caching.cache import Cache
from backoffice.catalogue import routes
from backoffice.catalogue.importing import ProductImport
from backoffice.catalogue.search import Search
from backoffice.catalogue.service import ProductService
from backoffice.catalogue.store import Product, ProductBatches, Products
from backoffice.stores import Stores


class CatalogueParts:
    """Uses the stores and the cache of products, owns nothing."""

    def __init__(self, stores: Stores, cache: Cache[Product]) -> None:
        """Connects to nothing."""
        service = ProductService(Products(stores), cache)
        imports = ProductImport(ProductBatches(stores), cache)
        self.routes = routes.routes(routes.ProductRoutes(service, Search(stores), imports))
