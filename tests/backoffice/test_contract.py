"""Answers match `/openapi.json`, and every request gets a typed answer."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain.problems import Problem
from tests.fixtures.fix_backoffice import BackofficeProcess, Staff

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_MEMBERS = [
    "email",
    "password",
    "name",
    "refresh_token",
    "token",
    "old_password",
    "new_password",
    "sku",
    "price_minor",
    "currency",
    "attributes",
    "active",
    "starts_at",
    "ends_at",
    "hold_seconds",
    "lanes",
    "expected_buyers",
    "items",
    "stock",
    "per_user_limit",
    "quantity",
    "description",
]
_BODY = (
    _JSON.map(lambda document: json.dumps(document).encode())
    | st.dictionaries(st.sampled_from(_MEMBERS), _JSON).map(lambda document: json.dumps(document).encode())
    | st.binary(max_size=200)
)
_HEADER_TEXT = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40)
_ROUTES = (
    "POST /v1/auth/register",
    "POST /v1/auth/refresh",
    "POST /v1/auth/logout",
    "POST /v1/auth/password",
    "POST /v1/auth/password-reset",
    "POST /v1/auth/verify-email",
    "POST /v1/products",
    "PATCH /v1/products/{id}",
    "DELETE /v1/products/{id}",
    "POST /v1/sales",
    "PATCH /v1/sales/{id}",
    "POST /v1/sales/{id}/restock",
    "GET /v1/sales",
    "GET /v1/orders",
    "GET /v1/products",
    "GET /v1/users",
    "PATCH /v1/users/me",
    "DELETE /v1/users/me",
    "PATCH /v1/users/{id}",
    "DELETE /v1/users/{id}",
)
_DATABASE_TEXT = ("postgres", "psycopg", "redis", "traceback", "select ", "127.0.0.1")


def check(answer: httpx.Response) -> None:
    """2xx, or a problem with matching code and status that reveals no internals."""
    if answer.status_code < 400:
        return
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert Problem(document["code"]).status == document["status"] == answer.status_code
    assert answer.status_code < 500, answer.text
    assert document["type"] == f"/problems/{document['code']}"
    assert not any(word in answer.text.lower() for word in _DATABASE_TEXT)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    route=st.sampled_from(_ROUTES),
    body=_BODY,
    key=_HEADER_TEXT,
    tag=_HEADER_TEXT,
    query=st.text(max_size=30),
    media_type=st.sampled_from(["application/json"] * 5 + ["text/plain", "", "application/json; charset=x"]),
)
def test_any_request_gets_a_typed_answer(
    staff: Staff, route: str, body: bytes, key: str, tag: str, query: str, media_type: str
) -> None:
    method, path = route.split(" ")
    headers = {"Content-Type": media_type, "Idempotency-Key": key, "If-Match": tag}
    url = path.replace("{id}", "01890000-0000-7000-8000-000000000001")
    parameters = {"q": query, "cursor": query, "limit": "3"} if method == "GET" else {}
    check(staff.http.request(method, url, content=body, headers=headers, params=parameters))


def described(staff: Staff) -> dict[str, Any]:
    document: dict[str, Any] = staff.http.get("/openapi.json").json()
    return document


def matches(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """The part of JSON Schema that the document uses; unknown keywords fail."""
    if "$ref" in schema:
        return matches(root["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], value, root)
    if "anyOf" in schema:
        return any(matches(choice, value, root) for choice in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    if "const" in schema:
        return bool(value == schema["const"])
    kind = schema.get("type")
    if kind == "object":
        members = schema.get("properties", {})
        extra = schema.get("additionalProperties", {} if not members else None)
        return (
            isinstance(value, dict)
            and set(schema.get("required", ())) <= set(value)
            and all(
                matches(members[name], member, root)
                if name in members
                else isinstance(extra, dict) and (extra == {} or matches(extra, member, root))
                for name, member in value.items()
            )
        )
    if kind == "array":
        return isinstance(value, list) and all(matches(schema["items"], item, root) for item in value)
    types: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
    return isinstance(value, types[kind]) and (kind == "boolean" or not isinstance(value, bool))


def test_answers_are_as_described(staff: Staff) -> None:
    root = described(staff)
    sale = staff.open_sale()
    product = staff.http.get("/v1/products").json()["items"][0]
    user = {"email": "a@b.example", "password": "long enough", "name": "A"}
    other = {**user, "email": "c@b.example"}
    account = staff.http.post("/v1/auth/register", json={**user, "email": "b@b.example"}).json()
    assert staff.http.post("/v1/auth/register", json=other).status_code == 201
    calls: list[tuple[str, str, str, dict[str, Any]]] = [
        ("get", "/v1/products", "/v1/products", {}),
        ("get", "/v1/products/{product_id}", f"/v1/products/{product['id']}", {}),
        ("get", "/v1/sales", "/v1/sales", {}),
        ("get", "/v1/sales/{sale_id}", f"/v1/sales/{sale['id']}", {}),
        ("get", "/v1/sales/{sale_id}/report", f"/v1/sales/{sale['id']}/report", {}),
        ("post", "/v1/sales/{sale_id}/pause", f"/v1/sales/{sale['id']}/pause", {}),
        ("patch", "/v1/sales/{sale_id}", f"/v1/sales/{sale['id']}", {"json": {"name": "x"}}),
        ("get", "/v1/orders", "/v1/orders", {}),
        ("get", "/livez", "/livez", {}),
        ("get", "/readyz", "/readyz", {}),
        ("post", "/v1/auth/register", "/v1/auth/register", {"json": user}),
        ("post", "/v1/auth/login", "/v1/auth/login", {"json": {name: user[name] for name in ("email", "password")}}),
        ("post", "/v1/auth/register", "/v1/auth/register", {"json": user}),
        ("get", "/v1/orders/{order_id}", f"/v1/orders/{uuid4()}", {}),
        ("delete", "/v1/products/{product_id}", f"/v1/products/{product['id']}", {}),
        ("post", "/v1/products", "/v1/products", {"json": {}}),
        ("get", "/v1/users/me", "/v1/users/me", {}),
        ("patch", "/v1/users/me", "/v1/users/me", {"json": {"name": "x"}}),
        ("get", "/v1/users", "/v1/users", {}),
        ("get", "/v1/users", "/v1/users", {"params": {"role": "god"}}),
        ("get", "/v1/users/{user_id}", f"/v1/users/{account['id']}", {}),
        ("patch", "/v1/users/{user_id}", f"/v1/users/{account['id']}", {"json": {"name": "x"}}),
        ("patch", "/v1/users/{user_id}", f"/v1/users/{account['id']}", {"json": {"email": "c@b.example"}}),
        ("patch", "/v1/users/{user_id}", f"/v1/users/{uuid4()}", {"json": {}}),
        ("delete", "/v1/users/{user_id}", f"/v1/users/{uuid4()}", {}),
    ]
    for method, template, path, extra in calls:
        answer = staff.http.request(method.upper(), path, **extra)
        response = root["paths"][template][method]["responses"].get(str(answer.status_code))
        assert response is not None, f"{method} {template}: {answer.status_code} is not described"
        media_type = answer.headers["content-type"]
        assert matches(response["content"][media_type]["schema"], answer.json(), root), f"{method} {template}"
        if answer.status_code >= 400:
            assert answer.json()["code"] in response["description"].split(", ")


def test_the_document_holds_together(staff: Staff) -> None:
    root = described(staff)
    assert root["openapi"] == "3.1.0"
    text = json.dumps(root)
    names = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert names <= set(root["components"]["schemas"])
    operations = [operation for path in root["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert "flashsale" in root["info"]["title"].lower()


def test_every_operation_tells_of_the_answer_that_does_not_come(staff: Staff) -> None:
    """Admission answers for a handler that is silent, on every operation: see test_admission."""
    for path, operations in described(staff)["paths"].items():
        for method, operation in operations.items():
            told = operation["responses"].get("504", {}).get("description")
            assert told == "outcome_unknown", f"{method} {path}"


@pytest.mark.parametrize("path", ["/redoc", "/swagger"])  # tests/pages covers /docs
def test_nothing_is_loaded_from_elsewhere(backoffice: BackofficeProcess, path: str) -> None:
    assert httpx.get(backoffice.url + path).status_code == 404


def test_metrics_count_by_route(staff: Staff) -> None:
    staff.http.get(f"/v1/sales/{uuid4()}")
    text = staff.http.get("/metrics").text
    assert 'flashsale_backoffice_requests_total{method="GET",route="/v1/sales/{sale_id}",status="404"}' in text
    assert "flashsale_backoffice_prepared 1.0" in text
