"""Live figures over HTTP: handler and route table."""

from __future__ import annotations

from backoffice.figures.service import Live
from backoffice.web.messages import STAFF, Answer, Call
from backoffice.web.routing import Route

EVENT_STREAM = "text/event-stream"


class FigureRoutes:
    """The handlers."""

    def __init__(self, live: Live) -> None:
        """Uses the viewers' sampler, owns nothing."""
        self._live = live

    async def watch(self, call: Call) -> Answer:
        """The stream of figures, until the token expires."""
        # x-accel-buffering: a proxy must pass on each event at once.
        return Answer(body=self._live.watch(call), media_type=EVENT_STREAM, headers={"x-accel-buffering": "no"})


def routes(figures: FigureRoutes) -> tuple[Route, ...]:
    """The route table of this subject."""
    return (
        Route(
            "GET",
            "/v1/operations/live",
            figures.watch,
            "Live figures of running sales, once a second (server-sent events)",
            "operations",
            roles=STAFF,
            media_type=EVENT_STREAM,
        ),
    )
