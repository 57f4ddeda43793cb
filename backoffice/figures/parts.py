"""The composition of this subject."""

from __future__ import annotations

from backoffice.figures import routes
from backoffice.figures.service import Live
from backoffice.figures.store import Lookout
from backoffice.stores import Stores
from backoffice.web.routing import Authenticate
from runtime.dead_letters import DeadLetters
from runtime.queue import Queue


class FigureParts:
    """`live` ends with the drain."""

    def __init__(
        self, stores: Stores, queue: Queue, letters: DeadLetters, authenticate: Authenticate, *, viewers_max: int
    ) -> None:
        """Uses them, owns nothing."""
        self.live = Live(Lookout(stores, queue, letters), authenticate, viewers_max=viewers_max)
        self.routes = routes.routes(routes.FigureRoutes(self.live))
