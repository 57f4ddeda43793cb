"""The edge's router: from method and path to a handler. Performs no I/O; the order route has a faster check of its own.

Distinguishes a path with other methods from an unknown path, so that 405 carries `Allow`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from edge.bodies import Body
from edge.problems import Answer


class Headers(Protocol):
    """Request headers from Granian, with names in lower case."""

    def __contains__(self, key: str) -> bool:
        """Whether the header is present."""

    def get(self, key: str, default: str | None = None) -> str | None:
        """The first value of a header, or the default."""

    def get_all(self, key: str) -> list[str]:
        """All values of a header, except those that are not ASCII."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request. `params` are the path's placeholders, percent-decoded. `body` has not been read."""

    method: str
    path: str
    query_string: str
    headers: Headers
    params: Mapping[str, str]
    body: Body


Handler: TypeAlias = Callable[[Request], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `template` is a path; each of its `{placeholders}` matches one non-empty segment."""

    method: str
    template: str
    handler: Handler


@dataclass(frozen=True, slots=True)
class Match:
    """A known path: its handlers by method (GET also serves HEAD) and the values of its placeholders."""

    template: str
    handlers: Mapping[str, Handler]
    params: Mapping[str, str]

    @property
    def methods(self) -> list[str]:
        """The methods for `Allow`."""
        return [*self.handlers, "OPTIONS"]


class Router:
    """Templates by number of segments. They are few, so it scans them."""

    def __init__(self, routes: list[Route]) -> None:
        self.routes = tuple(routes)
        self._by_template: dict[tuple[str, ...], dict[str, Handler]] = {}
        for route in routes:
            handlers = self._by_template.setdefault(tuple(route.template.split("/")), {})
            assert route.method not in handlers, f"{route.method} {route.template} is declared twice"
            handlers[route.method] = route.handler
            if route.method == "GET":
                handlers["HEAD"] = route.handler

    def match(self, path: str) -> Match | None:
        """The handlers of the path, or None for an unknown path."""
        segments = path.split("/")
        for template, handlers in self._by_template.items():
            if len(template) != len(segments):
                continue
            params: dict[str, str] = {}
            for expected, segment in zip(template, segments, strict=True):
                if expected.startswith("{"):
                    if not segment:
                        break
                    params[expected[1:-1]] = segment
                elif expected != segment:
                    break
            else:
                return Match("/".join(template), handlers, params)
        return None
