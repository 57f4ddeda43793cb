"""Puts live figures and dead letters together. Opens the two ports that the stores lack: queue and dead letters."""

from __future__ import annotations

from backoffice.operations import dead_letters, live
from backoffice.operations.dead_letters import DeadLetterRoutes
from backoffice.operations.figures import Lookout
from backoffice.operations.live import Live
from backoffice.stores import Stores
from backoffice.web.routing import Authenticate, Route
from runtime.dead_letters import open_dead_letters
from runtime.process.settings import Settings
from runtime.queue import open_queue

CONNECTIONS_MAX = 16
LETTER_CONNECTIONS_MAX = 4


class OperationParts:
    """`live` ends with the drain, `close` with the process."""

    def __init__(self, stores: Stores, settings: Settings, authenticate: Authenticate) -> None:
        """Connects at first use."""
        self._queue = open_queue(
            settings.queue_url,
            settings.topology.queues,
            length_max=settings.queue_length_max,
            connections_max=CONNECTIONS_MAX,
        )
        self._letters = open_dead_letters(
            settings.catalogue_dsn,
            letters_max=settings.dead_letters_max,
            connections_max=LETTER_CONNECTIONS_MAX,
        )
        self.live = Live(
            Lookout(stores, self._queue, self._letters), authenticate, viewers_max=settings.live_viewers_max
        )
        self._letter_routes = DeadLetterRoutes(self._letters, self._queue)

    @property
    def routes(self) -> tuple[Route, ...]:
        """Operations of both."""
        return (*live.routes(self.live), *dead_letters.routes(self._letter_routes))

    async def close(self) -> None:
        """Close both ports."""
        await self._queue.close()
        await self._letters.close()
