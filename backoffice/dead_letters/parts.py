"""The composition of this subject. Opens the two ports that the stores lack: queue and dead letters."""

from __future__ import annotations

from backoffice.dead_letters import routes
from runtime.dead_letters import open_dead_letters
from runtime.process.settings import Settings
from runtime.queue import open_queue

CONNECTIONS_MAX = 16
LETTER_CONNECTIONS_MAX = 4


class DeadLetterParts:
    """Owns `queue` and `letters`: `close` ends their connections."""

    def __init__(self, settings: Settings) -> None:
        """Connects at first use."""
        self.queue = open_queue(
            settings.queue_url,
            settings.topology.queues,
            length_max=settings.queue_length_max,
            connections_max=CONNECTIONS_MAX,
        )
        self.letters = open_dead_letters(
            settings.catalogue_dsn,
            letters_max=settings.dead_letters_max,
            connections_max=LETTER_CONNECTIONS_MAX,
        )
        self.routes = routes.routes(routes.DeadLetterRoutes(self.letters, self.queue))

    async def close(self) -> None:
        """Close both ports."""
        await self.queue.close()
        await self.letters.close()
