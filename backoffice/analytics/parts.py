"""The composition of this subject."""

from __future__ import annotations

from backoffice.analytics import routes
from backoffice.analytics.store import FigureStore
from backoffice.sales.service import SaleService
from backoffice.stores import Stores


class AnalyticsParts:
    """The route of the figures of a sale."""

    def __init__(self, stores: Stores, sales: SaleService, *, days: int) -> None:
        """Uses them, owns nothing. `days` is how long figures per second are kept."""
        store = None if stores.analytics is None else FigureStore(stores.analytics, stores.catalogue)
        self.routes = routes.routes(routes.AnalyticsRoutes(store, sales, days=days))
