"""The composition of this subject."""

from __future__ import annotations

from backoffice.stores import Stores
from backoffice.webhooks import routes
from backoffice.webhooks.store import WebhookStore
from runtime.process.settings import Settings


class WebhookParts:
    """Uses the stores, owns nothing."""

    def __init__(self, settings: Settings, stores: Stores) -> None:
        """Connects to nothing."""
        self.routes = routes.routes(
            routes.WebhookRoutes(
                WebhookStore(stores),
                key=settings.webhook_key,
                allowed=settings.webhook_addresses_allowed,
            )
        )
