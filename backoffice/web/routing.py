"""Routes, and the work around a handler: role, body, query, time limit, problems. Knows no subject.

Every outcome of a handler becomes an answer here. An exception must not reach Robyn: its error answers have no body.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import psycopg
import redis.exceptions
import structlog
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests
from pydantic import BaseModel, ValidationError

from backoffice.web.acts import REQUEST_ID_HEADER, Recorder, is_noted, new_act, object_of
from backoffice.web.admission.context import Permit
from backoffice.web.json_body import VALUES_MAX, check_json
from backoffice.web.messages import (
    JSON,
    STAFF,
    Answer,
    Call,
    Caller,
    Refused,
    Rendered,
    Role,
    render,
)
from backoffice.web.problem_page import render_refusal, wants_page
from domain.problems import FieldError, Problem, ProblemDetails
from runtime.audit import Act, Action, act_as

HANDLER_S_MAX = 15.0  # for the whole handler; its pools and clients time out earlier
BODY_BYTES_MAX = 64 * 1024  # of most routes
SHORT_BODY_BYTES = 4096  # of routes that ignore a body
ERRORS_MAX = 50  # field errors in one answer
_PARAMETER = re.compile(r"\{([a-z_]+)\}")

log = structlog.get_logger(__name__)

Handler = Callable[..., Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. With `roles` None no token is read; `anonymous` also admits requests without a token.

    The handler receives `body` and `query` parsed. `path` has its parameters in braces, as in OpenAPI. The other fields
    describe the operation in `/openapi.json`.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    tag: str
    roles: frozenset[Role] | None = None
    anonymous: bool = False
    body: type[BaseModel] | None = None
    body_values_max: int = VALUES_MAX
    body_bytes_max: int = BODY_BYTES_MAX
    query: type[BaseModel] | None = None
    answers: type[BaseModel] | None = None
    status: int = 200
    media_type: str = JSON
    other_media_types: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    headers: tuple[str, ...] = field(default=())
    """Request headers that the operation reads; required ones end with `!`."""
    action: Action | None = None
    """The action in the audit log, for a route that changes something: its refusals are noted there."""
    described: bool = True
    """Whether the operation is in the OpenAPI document; files of pages are not."""

    @property
    def robyn_path(self) -> str:
        """The path in the notation of Robyn: `:name` for a parameter."""
        return _PARAMETER.sub(r":\1", self.path)


class Authenticate(Protocol):
    """Verifies an `Authorization` header."""

    def __call__(self, authorization: str | None) -> Caller:
        """The caller; Refused for a header that is missing, malformed, forged or expired."""
        ...


class Observe(Protocol):
    """Records one answered request."""

    def __call__(self, *, route: str, method: str, status: int, seconds: float) -> None:
        """`route` is the path of the route, with parameters in braces."""
        ...


class RouteTable:
    """All routes by the shape of their path; finds those of a path before any body is read."""

    def __init__(self, routes: Iterable[Route]) -> None:
        """Asserts that no operation is declared twice."""
        self.routes = tuple(routes)
        self._by_segments: dict[int, list[tuple[re.Pattern[str], dict[str, Route]]]] = {}
        by_path: dict[str, dict[str, Route]] = {}
        for route in self.routes:
            methods = by_path.setdefault(route.path, {})
            assert route.method not in methods, f"{route.method} {route.path} is declared twice"
            methods[route.method] = route
            if route.method == "GET":
                methods["HEAD"] = route
        # Fixed segments win over parameters: /v1/users/me before /v1/users/{user_id}.
        for path in sorted(by_path, key=lambda path: path.count("{")):
            expression = re.compile(_PARAMETER.sub(r"[^/]+", path.replace(".", r"\.")))
            self._by_segments.setdefault(path.count("/"), []).append((expression, by_path[path]))

    def find(self, path: str) -> Mapping[str, Route]:
        """The routes of a concrete path by method; empty when none matches."""
        for expression, methods in self._by_segments.get(path.count("/"), ()):
            if expression.fullmatch(path):
                return methods
        return {}


class Dispatcher:
    """Runs the handler of a route and turns every outcome into an answer."""

    def __init__(self, authenticate: Authenticate, observe: Observe, recorder: Recorder) -> None:
        """`observe` is called once per request, `authenticate` when the route has roles.

        `recorder` is the audit log.
        """
        self._authenticate = authenticate
        self._observe = observe
        self._recorder = recorder

    def permit(self, table: RouteTable, method: str, path: str, authorization: str | None, client: str) -> Permit:
        """Decide on a request by its head: the route, the token and the role, before any body is read."""
        routes = table.find(path)
        if not routes:
            return Permit(ProblemDetails(Problem.NOT_FOUND))
        route = routes.get(method)
        if route is None:
            return Permit(ProblemDetails(Problem.METHOD_NOT_ALLOWED, allow=tuple(sorted(routes))))
        caller = None
        try:
            caller = self._caller(route, authorization)
            _require_role(route, caller)
        except Refused as refusal:
            self._observe(route=route.path, method=method, status=refusal.details.problem.status, seconds=0.0)
            act = new_act(client, caller)
            self._note(act, route, path, refusal)
            return Permit(refusal.details, request_id=act.request_id)
        bytes_max = SHORT_BODY_BYTES if route.body is None else route.body_bytes_max
        return Permit(None, bytes_max, is_staff=caller is not None and caller.role in STAFF)

    def _caller(self, route: Route, authorization: str | None) -> Caller | None:
        """The caller, None where the route reads no token; Refused for a token that is not valid."""
        if route.roles is None or (route.anonymous and not authorization):
            return None
        return self._authenticate(authorization)

    def _note(self, act: Act, route: Route, path: str, refusal: Refused) -> None:
        problem = refusal.details.problem
        if route.action is not None and is_noted(problem):
            self._recorder.refused(
                act, route.action, object_of(route.action, route.path, path, act.actor), problem.value
            )

    async def answer(self, route: Route, call: Call) -> Rendered:
        """The answer in wire form. Raises only CancelledError."""
        started = time.perf_counter()
        with act_as(new_act(call.client)) as act:
            try:
                rendered = await self._answer(route, call, act)
            finally:
                self._recorder.answered(act)  # a request may fail after its change has committed
        rendered.headers[REQUEST_ID_HEADER] = act.request_id or ""
        self._observe(
            route=route.path, method=call.method, status=rendered.status, seconds=time.perf_counter() - started
        )
        return rendered

    async def _answer(self, route: Route, call: Call, act: Act) -> Rendered:
        refuse = partial(
            render_refusal, as_page=wants_page(call.method, call.path, call.headers.get("accept", ""))
        )  # fmt: skip
        try:
            async with asyncio.timeout(HANDLER_S_MAX):
                return render(await self._run(route, call, act))
        except Refused as refusal:
            self._note(act, route, call.path, refusal)
            return refuse(refusal.details)
        except TooManyRequests:  # the queue of a connection pool is full
            return refuse(ProblemDetails(Problem.OVERLOADED, retry_after_s=1))
        except _UNAVAILABLE as error:
            # The text of the error may name hosts and databases.
            log.warning("dependency unavailable", method=route.method, route=route.path, error=type(error).__name__)
            return refuse(ProblemDetails(Problem.DEPENDENCY_UNAVAILABLE, retry_after_s=1))
        except Exception:
            log.exception("handler failed", method=route.method, route=route.path, request_id=act.request_id)
            return refuse(ProblemDetails(Problem.INTERNAL_ERROR))

    async def _run(self, route: Route, call: Call, act: Act) -> Answer:
        caller = self._caller(route, call.headers.get("authorization"))
        if caller is not None:
            act.actor = str(caller.user_id)
            call = replace(call, caller=caller)
        _require_role(route, caller)
        arguments: list[BaseModel] = []
        if route.body is not None:
            arguments.append(parse_body(route.body, call, values_max=route.body_values_max))
        if route.query is not None:
            arguments.append(parse_query(route.query, call))
        return await route.handler(call, *arguments)


def _require_role(route: Route, caller: Caller | None) -> None:
    """Refused for a caller whom the route does not admit."""
    if caller is not None and route.roles is not None and caller.role not in route.roles:
        raise Refused(Problem.FORBIDDEN, "The role in the access token does not allow this")


_UNAVAILABLE = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    psycopg.OperationalError,
    psycopg.InterfaceError,
    PoolTimeout,
    PoolClosed,
    TimeoutError,
    ConnectionError,
)


def parse_body(model: type[BaseModel], call: Call, *, values_max: int = VALUES_MAX) -> BaseModel:
    """The body as a model; Refused(`unsupported_media_type`, `malformed_request` or `validation_failed`)."""
    media_type, _, parameters = call.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if media_type.strip().lower() != JSON or charset not in ("", "charset=utf-8"):
        raise Refused(Problem.UNSUPPORTED_MEDIA_TYPE)
    if call.headers.get("content-encoding", "").strip():
        raise Refused(Problem.UNSUPPORTED_MEDIA_TYPE)
    check_json(call.body, values_max=values_max)
    try:
        return model.model_validate_json(call.body, strict=True)
    except ValidationError as error:
        if any(place["type"] == "json_invalid" for place in error.errors(include_url=False, include_input=False)):
            raise Refused(Problem.MALFORMED_REQUEST, "The body is not valid JSON") from error
        raise _not_valid(error) from error


def parse_query(model: type[BaseModel], call: Call) -> BaseModel:
    """The query as a model, without unknown parameters; Refused(`validation_failed`)."""
    try:
        return model.model_validate(dict(call.query))
    except ValidationError as error:
        raise _not_valid(error) from error


def _not_valid(error: ValidationError) -> Refused:
    return Refused(Problem.VALIDATION_FAILED, errors=field_errors(error))


def field_errors(error: ValidationError) -> tuple[FieldError, ...]:
    """Pointers and reasons, at most `ERRORS_MAX`."""
    places = error.errors(include_url=False, include_input=False, include_context=False)[:ERRORS_MAX]
    return tuple(_field_error(place) for place in places)


def _field_error(place: Mapping[str, Any]) -> FieldError:
    # Pydantic reports an invalid member name at `[key]` below the member, a place that the body does not have.
    where = place["loc"][:-1] if place["loc"][-1:] == ("[key]",) else place["loc"]
    # RFC 6901, section 3: `~` and `/` in a member name are escaped.
    pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in where)
    return FieldError(pointer, place["msg"].removeprefix("Value error, "))
