"""/livez and /readyz: whether this worker runs, and whether it should be sent buyers."""

from __future__ import annotations

import orjson

from domain.problems import Problem, ProblemDetails
from edge.guard import Guard
from edge.problems import Answer, render
from edge.routing import Request
from edge.sale_directory import SaleDirectory
from runtime.process.settings import Durability
from runtime.tokens.session_ends import SessionEnds

_HEADERS = [("content-type", "application/json"), ("cache-control", "no-store")]


class Health:
    """Not ready when something is missing, or when the process was told to stop (`drain`)."""

    def __init__(
        self, guard: Guard, directory: SaleDirectory, session_ends: SessionEnds, durability: Durability
    ) -> None:
        self._guard = guard
        self._directory = directory
        self._session_ends = session_ends
        self._durability = durability
        self._draining = False

    def drain(self) -> None:
        """Not ready from now on."""
        self._draining = True

    @property
    def missing(self) -> dict[str, str]:
        """Name of what is missing -> a sentence on it; empty when ready."""
        missing = dict(self._guard.watched.faults)
        if not self._directory.synced:
            missing["sales"] = "the sales are not read, or may be out of date"
        if not self._session_ends.synced:
            missing["sessions"] = "whose sessions were ended is not read, or may be out of date"
        if self._draining:
            missing["draining"] = "the process is about to stop"
        return missing

    async def livez(self, request: Request) -> Answer:  # noqa: ARG002 - a handler's signature
        """200 as long as the event loop turns."""
        return 200, _HEADERS, b'{"status":"alive"}'

    async def readyz(self, request: Request) -> Answer:  # noqa: ARG002 - a handler's signature
        """200, or 503 naming what is missing; the durability level in both."""
        missing = self.missing
        if not missing:
            return 200, _HEADERS, orjson.dumps({"status": "ready", "durability": self._durability.value, "missing": []})
        detail = "; ".join(f"{name}: {text}" for name, text in missing.items())
        extensions = {"durability": self._durability.value, "missing": sorted(missing)}
        return render(ProblemDetails(Problem.DEPENDENCY_UNAVAILABLE, detail, extensions=extensions))
