"""The OpenAPI 3.1 document, generated from the route table: every route is described, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from backoffice.web.fields import without_null
from backoffice.web.messages import PROBLEM_JSON, Answer, Call
from backoffice.web.routing import Route
from domain.orders import KEY_LENGTH_MAX
from domain.problems import Problem

_PARAMETER = re.compile(r"\{([a-z_]+)\}")
_REF = "#/components/schemas/{model}"
_UUID = {"type": "string", "format": "uuid"}
_PATH_SCHEMAS = {"letter_id": {"type": "string", "pattern": "^[A-Za-z0-9._~-]{1,200}$"}}
# By name; with `!` for a required header. An optional header may be empty.
_HEADERS: dict[str, dict[str, Any]] = {
    "Idempotency-Key": {"pattern": rf"^[!#-~][!-~]{{0,{KEY_LENGTH_MAX - 1}}}$"},
    "If-Match!": {"minLength": 1},
}


def document(routes: Iterable[Route], *, version: str) -> dict[str, Any]:
    """The description of these routes."""
    routes = tuple(route for route in routes if route.described)
    models = sorted(
        {model for route in routes for model in (route.body, route.answers) if model is not None},
        key=lambda model: model.__name__,
    )
    _, schemas = models_json_schema(
        [(model, "serialization" if _is_answer(model, routes) else "validation") for model in models],
        ref_template=_REF,
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Flashsale backoffice", "version": version},
        "paths": paths,
        "components": {
            "schemas": {**schemas.get("$defs", {}), "Problem": _PROBLEM},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def route(routes: Iterable[Route], *, version: str) -> Route:
    """The route of the document, which describes this route as well."""

    async def show(_: Call) -> Answer:
        return Answer(body=content, headers={"cache-control": "no-cache"})

    described = Route("GET", "/openapi.json", show, "This description", "operations")
    content = orjson.dumps(document((*routes, described), version=version))
    return described


def _is_answer(model: type[BaseModel], routes: Iterable[Route]) -> bool:
    return any(route.answers is model for route in routes)


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "tags": [route.tag],
        "operationId": f"{route.method.lower()}{re.sub(r'[^a-z0-9]+', '_', route.path.lower()).rstrip('_')}",
        "parameters": _parameters(route),
        "responses": _responses(route),
    }
    if route.roles is not None:
        operation["security"] = [{"token": []}, {}] if route.anonymous else [{"token": []}]
        roles = ", ".join(sorted(role.value for role in route.roles))
        operation["description"] = f"Roles: {roles}{'; or without a token' if route.anonymous else ''}."
    if route.body is not None:
        content = {"application/json": {"schema": {"$ref": _REF.format(model=route.body.__name__)}}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMAS.get(name, _UUID)}
        for name in _PARAMETER.findall(route.path)
    ]
    if route.query is not None:
        schema = route.query.model_json_schema()
        for name, member in schema["properties"].items():
            required = name in schema.get("required", ())
            found.append({"name": name, "in": "query", "required": required, "schema": without_null(member)})
    for header in route.headers:
        name = header.removesuffix("!")
        schema = {"type": "string", **_HEADERS.get(name, _HEADERS.get(header, {}))}
        found.append({"name": name, "in": "header", "required": header.endswith("!"), "schema": schema})
    return found


def _responses(route: Route) -> dict[str, Any]:
    success: dict[str, Any] = {"description": route.summary}
    if route.answers is not None:
        success["content"] = {"application/json": {"schema": {"$ref": _REF.format(model=route.answers.__name__)}}}
        success["content"] |= {media_type.partition(";")[0]: {} for media_type in route.other_media_types}
    elif route.status != 204:
        success["content"] = {route.media_type.partition(";")[0]: {}}
    responses: dict[str, Any] = {str(route.status): success}
    if "If-None-Match" in route.headers:
        responses["304"] = {"description": "The client has the current version"}
    by_status: dict[int, list[str]] = {}
    for problem in sorted({*route.problems, *_implied(route)}):
        by_status.setdefault(problem.status, []).append(problem.value)
    for status, codes in sorted(by_status.items()):
        responses[str(status)] = {
            "description": ", ".join(codes),
            "content": {PROBLEM_JSON: {"schema": {"$ref": _REF.format(model="Problem")}}},
        }
    return responses


def _implied(route: Route) -> set[Problem]:
    """Problems of the layers around every handler: admission and the dispatcher."""
    problems = {
        Problem.MALFORMED_REQUEST,
        Problem.REQUEST_TIMEOUT,
        Problem.BODY_TOO_LARGE,
        Problem.INTERNAL_ERROR,
        Problem.OVERLOADED,
        Problem.DEPENDENCY_UNAVAILABLE,
        Problem.OUTCOME_UNKNOWN,  # from admission, for a request that it has forwarded
    }
    if route.roles is not None:
        problems |= {Problem.TOKEN_MISSING, Problem.TOKEN_INVALID, Problem.TOKEN_EXPIRED, Problem.FORBIDDEN}
    if route.body is not None:
        problems |= {Problem.UNSUPPORTED_MEDIA_TYPE, Problem.VALIDATION_FAILED}
    if route.query is not None:
        problems.add(Problem.VALIDATION_FAILED)
    return problems


_PROBLEM: dict[str, Any] = {
    "type": "object",
    "description": "RFC 9457",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "enum": sorted(problem.value for problem in Problem)},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}
