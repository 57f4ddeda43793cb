"""The composition of this subject."""

from __future__ import annotations

from backoffice.orders import routes
from backoffice.orders.changes import OrderChanges, Restocker, Restocks
from backoffice.orders.service import OrderService
from backoffice.orders.store import Orders
from backoffice.stores import Stores


class OrderParts:
    """`restocker` runs beside requests."""

    def __init__(self, stores: Stores, restocks: Restocks) -> None:
        """Connects to nothing. `restocks` puts units on sale again."""
        service = OrderService(stores, Orders(stores))
        changes = OrderChanges(stores, service, restocks)
        self.restocker = Restocker(changes)
        self.routes = routes.routes(routes.OrderRoutes(service, changes))
