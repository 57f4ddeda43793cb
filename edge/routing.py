"""Routes of the edge: which handler answers which method and path. Performs no I/O; the order route has a faster check.

A path that exists under another method is told apart from one that does not, so that 405 carries its `Allow`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from edge.problems import Answer


class Headers(Protocol):
    """Request headers as Granian gives them: names in lower case."""

    def __contains__(self, key: str) -> bool:
        """Whether the header is there, with whatever value."""

    def get(self, key: str, default: str | None = None) -> str | None:
        """The value of a header (the first one of several), or the default."""

    def get_all(self, key: str) -> list[str]:
        """All values of a header; those that are not ASCII are left out."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that takes no body. `params` are the path's placeholders, percent-decoded."""

    method: str
    path: str
    query_string: str
    headers: Headers
    params: Mapping[str, str]


Handler: TypeAlias = Callable[[Request], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation: `template` is a path with `{placeholders}` that each match one non-empty segment."""

    method: str
    template: str
    handler: Handler


@dataclass(frozen=True, slots=True)
class Match:
    """A path that exists: its handlers by method (HEAD is served by GET), and the placeholders' values."""

    template: str
    handlers: Mapping[str, Handler]
    params: Mapping[str, str]

    @property
    def methods(self) -> list[str]:
        """Methods for `Allow`."""
        return [*self.handlers, "OPTIONS"]


class Router:
    """Paths by their number of segments; templates are few, so a scan is enough."""

    def __init__(self, routes: list[Route]) -> None:
        self.routes = tuple(routes)
        self._by_template: dict[tuple[str, ...], dict[str, Handler]] = {}
        for route in routes:
            handlers = self._by_template.setdefault(tuple(route.template.split("/")), {})
            assert route.method not in handlers, f"{route.method} {route.template} twice"
            handlers[route.method] = route.handler
            if route.method == "GET":
                handlers["HEAD"] = route.handler

    def match(self, path: str) -> Match | None:
        """The path's handlers, or None for a path that does not exist."""
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
