"""The composition of this subject."""

from __future__ import annotations

from backoffice.orders import routes
from backoffice.orders.service import OrderService
from backoffice.orders.store import Orders
from backoffice.stores import Stores


class OrderParts:
    """Uses the stores, owns nothing."""

    def __init__(self, stores: Stores) -> None:
        """Connects to nothing."""
        self.routes = routes.routes(routes.OrderRoutes(OrderService(stores, Orders(stores))))
