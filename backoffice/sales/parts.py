"""The composition of this subject."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from backoffice.sales import routes
from backoffice.sales.lanes import SaleLanes
from backoffice.sales.service import SaleService
from backoffice.sales.store import Sales
from backoffice.sales.synchroniser import Synchroniser
from backoffice.stores import Stores


class SaleParts:
    """`synchroniser` runs beside requests; orders put units on sale again through `service`."""

    def __init__(self, stores: Stores, *, kept_s: float, repaired: Callable[[int], None]) -> None:
        """Redis keeps a sale until `kept_s` after its end; `repaired` receives the number of repairs of each round."""
        sales, lanes = Sales(stores), SaleLanes(stores.redis)
        self.service = SaleService(stores, sales, lanes, kept=timedelta(seconds=kept_s))
        self.synchroniser = Synchroniser(sales, lanes, self.service, repaired)
        self.routes = routes.routes(routes.SaleRoutes(self.service))
