"""Live figures and dead letters put together: what they need beside the stores is the queue, which is opened here."""

from __future__ import annotations

from backoffice.operations import dead_letters, live
from backoffice.operations.dead_letters import DeadLetterRoutes
from backoffice.operations.figures import Lookout
from backoffice.operations.live import Live
from backoffice.stores import Stores
from backoffice.web.routing import Authenticate, Route
from runtime.process.settings import Settings
from runtime.queue import open_queue

CONNECTIONS_MAX = 16


class OperationParts:
    """`live` ends with the drain, `close` with the process."""

    def __init__(self, stores: Stores, settings: Settings, authenticate: Authenticate) -> None:
        """Connects at first use."""
        self._queue = open_queue(
            settings.queue_url,
            length_max=settings.queue_length_max,
            dead_letters_max=settings.dead_letters_max,
            connections_max=CONNECTIONS_MAX,
        )
        self.live = Live(Lookout(stores, self._queue), authenticate, viewers_max=settings.live_viewers_max)
        self._letters = DeadLetterRoutes(self._queue.dead_letters, stores.cache)

    @property
    def routes(self) -> tuple[Route, ...]:
        """Operations of both."""
        return (*live.routes(self.live), *dead_letters.routes(self._letters))

    async def close(self) -> None:
        """The queue's connections."""
        await self._queue.close()
