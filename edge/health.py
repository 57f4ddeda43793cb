"""/livez and /readyz: whether this worker is alive, and whether it should get requests."""

from __future__ import annotations

import orjson

from domain.problems import Problem, ProblemDetails
from edge.admission import Admission
from edge.problems import Answer, render
from edge.routing import Request
from edge.sale_directory import SaleDirectory
from runtime.process.settings import Durability
from runtime.process.supervision import TaskSupervisor
from runtime.tokens.session_ends import SessionEnds

_HEADERS = [("content-type", "application/json"), ("cache-control", "no-store")]


class Health:
    """Not ready when a check fails, or after `drain`."""

    def __init__(
        self,
        admission: Admission,
        directory: SaleDirectory,
        session_ends: SessionEnds,
        background: TaskSupervisor,
        durability: Durability,
        direct_url: str | None,
    ) -> None:
        """`direct_url`: address of the direct door, None while it is off."""
        self._admission = admission
        self._directory = directory
        self._session_ends = session_ends
        self._background = background
        self._durability = durability
        self._direct = {} if direct_url is None else {"edge_direct_url": direct_url}
        self._draining = False

    def drain(self) -> None:
        """Not ready from now on."""
        self._draining = True

    @property
    def missing(self) -> dict[str, str]:
        """Name of each failed check -> a sentence; empty when ready."""
        missing = dict(self._admission.observed.faults)
        if not self._directory.synced:
            missing["sales"] = "the definitions of sales are not loaded, or may be out of date"
        if not self._session_ends.synced:
            missing["sessions"] = "the list of ended sessions is not loaded, or may be out of date"
        missing.update({f"task {name}": problem for name, problem in self._background.problems.items()})
        if self._draining:
            missing["draining"] = "the process drains before it stops"
        return missing

    async def livez(self, request: Request) -> Answer:  # noqa: ARG002 - a handler's signature
        """200 while the event loop runs."""
        return 200, _HEADERS, b'{"status":"alive"}'

    async def readyz(self, request: Request) -> Answer:  # noqa: ARG002 - a handler's signature
        """200, or 503 with the names of failed checks. Both contain the durability level."""
        missing = self.missing
        if not missing:
            return (
                200,
                _HEADERS,
                orjson.dumps({"status": "ready", "durability": self._durability.value, "missing": [], **self._direct}),
            )
        detail = "; ".join(f"{name}: {text}" for name, text in missing.items())
        extensions = {"durability": self._durability.value, "missing": sorted(missing)}
        return render(ProblemDetails(Problem.DEPENDENCY_UNAVAILABLE, detail, extensions=extensions))
