"""The edge's OpenAPI 3.1 document. Tests compare its paths with the router and its codes with the handlers' answers."""

from __future__ import annotations

from typing import Any, Final

import orjson

from domain.orders import KEY_LENGTH_MAX, LINES_MAX, QUANTITY_MAX, SKU_LENGTH_MAX, OrderStatus
from domain.payments import EVENT_ID_LENGTH_MAX, NO_PAYMENT, PaymentState
from domain.problems import Problem
from domain.sales import SaleState
from edge.problems import Answer
from edge.routing import Request

_P = Problem
_BUYER: Final = (_P.TOKEN_MISSING, _P.TOKEN_INVALID, _P.TOKEN_EXPIRED)
_CROWDED: Final = (_P.RATE_LIMITED, _P.OVERLOADED)
# The problems of each operation, besides those that any request may get.
CODES: Final[dict[tuple[str, str], tuple[Problem, ...]]] = {
    ("post", "/v1/sales/{sale_id}/orders"): (
        _P.MALFORMED_REQUEST,
        _P.IDEMPOTENCY_KEY_MISSING,
        *_BUYER,
        _P.SALE_NOT_FOUND,
        _P.SKU_NOT_FOUND,
        _P.REQUEST_TIMEOUT,
        _P.BODY_TOO_LARGE,
        _P.SALE_NOT_OPEN,
        _P.SOLD_OUT,
        _P.PURCHASE_LIMIT_EXCEEDED,
        _P.SALE_ENDED,
        _P.UNSUPPORTED_MEDIA_TYPE,
        _P.VALIDATION_FAILED,
        _P.IDEMPOTENCY_KEY_REUSED,
        _P.RATE_LIMITED,
        _P.OVERLOADED,
        _P.DEPENDENCY_UNAVAILABLE,
        _P.OUTCOME_UNKNOWN,
    ),
    ("get", "/v1/orders"): (*_BUYER, *_CROWDED, _P.VALIDATION_FAILED, _P.DEPENDENCY_UNAVAILABLE),
    ("get", "/v1/orders/{order_id}"): (*_BUYER, *_CROWDED, _P.ORDER_NOT_FOUND, _P.DEPENDENCY_UNAVAILABLE),
    ("post", "/v1/orders/{order_id}/cancel"): (
        *_BUYER,
        *_CROWDED,
        _P.ORDER_NOT_FOUND,
        _P.ORDER_STATE_CONFLICT,
        _P.DEPENDENCY_UNAVAILABLE,
        _P.OUTCOME_UNKNOWN,
    ),
    ("post", "/v1/orders/{order_id}/payment"): (
        *_BUYER,
        *_CROWDED,
        _P.ORDER_NOT_FOUND,
        _P.ORDER_STATE_CONFLICT,
        _P.DEPENDENCY_UNAVAILABLE,
        _P.OUTCOME_UNKNOWN,
    ),
    ("post", "/v1/payments/webhook"): (
        _P.MALFORMED_REQUEST,
        _P.FORBIDDEN,
        _P.REQUEST_TIMEOUT,
        _P.BODY_TOO_LARGE,
        _P.UNSUPPORTED_MEDIA_TYPE,
        _P.VALIDATION_FAILED,
        _P.OVERLOADED,
        _P.DEPENDENCY_UNAVAILABLE,
    ),
    ("get", "/v1/sales/{sale_id}"): (_P.SALE_NOT_FOUND, _P.OVERLOADED, _P.DEPENDENCY_UNAVAILABLE),
    ("get", "/openapi.json"): (),
    ("get", "/livez"): (),
    ("get", "/readyz"): (_P.DEPENDENCY_UNAVAILABLE,),
    ("get", "/metrics"): (_P.OVERLOADED,),
}
ANYWHERE: Final = (_P.NOT_FOUND, _P.METHOD_NOT_ALLOWED, _P.INTERNAL_ERROR)

_UUID: Final = {"type": "string", "format": "uuid"}
_TIME: Final = {"type": "string", "format": "date-time"}
_SKU: Final = {"type": "string", "pattern": f"^[A-Za-z0-9._-]{{1,{SKU_LENGTH_MAX}}}$"}
_UNITS: Final = {"type": "integer", "minimum": 1, "maximum": QUANTITY_MAX}
_CURRENCY: Final = {"type": "string", "pattern": "^[A-Z]{3}$"}
_MINOR: Final = {"type": "integer", "minimum": 0, "description": "Amount in minor units of the currency."}


def _object(properties: dict[str, Any], *, optional: tuple[str, ...] = (), closed: bool = False) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
    }
    if closed:
        schema["additionalProperties"] = False
    return schema


_PLACED: Final[dict[str, Any]] = {
    "order_id": _UUID,
    "sale_id": _UUID,
    "status": {"const": OrderStatus.RESERVED.label},
    "items": {
        "type": "array",
        "items": _object({"sku": _SKU, "quantity": _UNITS, "unit_price_minor": _MINOR}),
    },
    "total_minor": _MINOR,
    "currency": _CURRENCY,
    "reserved_at": _TIME,
    "expires_at": _TIME,
}
_SCHEMAS: Final[dict[str, Any]] = {
    "OrderRequest": _object(
        {
            "items": {
                "type": "array",
                "minItems": 1,
                "maxItems": LINES_MAX,
                "description": "Lines with distinct SKUs. All are reserved, or none.",
                "items": _object({"sku": _SKU, "quantity": _UNITS}, closed=True),
            }
        },
        closed=True,
    ),
    "PlacedOrder": _object(_PLACED),
    "Order": _object(
        {
            **_PLACED,
            "status": {"enum": [status.label for status in OrderStatus]},
            "payment": {"enum": [NO_PAYMENT, *(state.value for state in PaymentState if state.is_shown)]},
            "refund_due_minor": _MINOR,
            "refunded_minor": _MINOR,
        },
        optional=("refund_due_minor", "refunded_minor"),
    ),
    "PaymentPage": _object({"payment_url": {"type": "string", "format": "uri"}}),
    "PaymentEvent": _object(
        {
            "event_id": {"type": "string", "pattern": f"^[!-~]{{1,{EVENT_ID_LENGTH_MAX}}}$"},
            "type": {"type": "string", "examples": ["payment.succeeded", "payment.failed"]},
            "order_id": _UUID,
            "amount_minor": {**_MINOR, "minimum": 1},
            "currency": _CURRENCY,
        }
    ),
    "PaymentResult": _object({"result": {"enum": ["captured", "refund_due", "ignored"]}}),
    "OrderPage": _object(
        {
            "items": {"type": "array", "items": {"$ref": "#/components/schemas/Order"}},
            "next_cursor": {"type": ["string", "null"]},
        }
    ),
    "Sale": _object(
        {
            "id": _UUID,
            "name": {"type": "string"},
            "state": {"enum": [state.value for state in SaleState if state is not SaleState.DRAFT]},
            "starts_at": _TIME,
            "ends_at": _TIME,
            "items": {
                "type": "array",
                "items": _object(
                    {
                        "sku": _SKU,
                        "unit_price_minor": _MINOR,
                        "currency": _CURRENCY,
                        "per_user_limit": {"type": "integer", "minimum": 0, "description": "0: no limit."},
                        "availability": {"enum": ["available", "low", "sold_out"]},
                    }
                ),
            },
            "server_time": _TIME,
        }
    ),
    "Readiness": _object(
        {
            "status": {"const": "ready"},
            "durability": {"enum": ["fsync", "replicated", "memory"]},
            "missing": {"type": "array", "maxItems": 0, "items": {"type": "string"}},
        }
    ),
    "Liveness": _object({"status": {"const": "alive"}}),
    "Problem": _object(
        {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"enum": [problem.value for problem in Problem]},
            "errors": {
                "type": "array",
                "items": _object({"pointer": {"type": "string"}, "detail": {"type": "string"}}),
            },
        },
        optional=("errors",),
    ),
}


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


def _path_id(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": _UUID}


# Summary; status, description, content or schema of the success; further members of the operation.
_OPERATIONS: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("post", "/v1/sales/{sale_id}/orders"): {
        "summary": "Place an order",
        "operationId": "placeOrder",
        "parameters": [
            _path_id("sale_id"),
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": True,
                "description": f"1-{KEY_LENGTH_MAX} visible ASCII characters. Same key and lines: same order.",
                "schema": {"type": "string", "pattern": f"^[!#-~][!-~]{{0,{KEY_LENGTH_MAX - 1}}}$"},
            },
        ],
        "requestBody": {"required": True, "content": _json("OrderRequest")},
        "responses": {
            "202": {
                "description": "The units are reserved. The order is durable at the level that /readyz reports.",
                "headers": {
                    "Location": _header("/v1/orders/{order_id}"),
                    "Idempotency-Replayed": _header("`true` when an earlier request with this key was accepted."),
                },
                "content": _json("PlacedOrder"),
            }
        },
    },
    ("get", "/v1/orders"): {
        "summary": "The buyer's orders, newest first",
        "operationId": "listOrders",
        "parameters": [
            {"name": "cursor", "in": "query", "description": "`next_cursor` of a page.", "schema": {"type": "string"}},
            {
                "name": "limit",
                "in": "query",
                "schema": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
            },
        ],
        "responses": {"200": {"description": "A page.", "content": _json("OrderPage")}},
    },
    ("get", "/v1/orders/{order_id}"): {
        "summary": "One of the buyer's orders",
        "operationId": "getOrder",
        "parameters": [_path_id("order_id")],
        "responses": {"200": {"description": "The order.", "content": _json("Order")}},
    },
    ("post", "/v1/orders/{order_id}/cancel"): {
        "summary": "Cancel a reserved order",
        "operationId": "cancelOrder",
        "parameters": [_path_id("order_id")],
        "responses": {"200": {"description": "The cancelled order, for repeats too.", "content": _json("Order")}},
    },
    ("post", "/v1/orders/{order_id}/payment"): {
        "summary": "The provider's page on which the buyer pays a reserved order",
        "operationId": "startPayment",
        "parameters": [_path_id("order_id")],
        "responses": {"200": {"description": "Where to send the buyer.", "content": _json("PaymentPage")}},
    },
    ("post", "/v1/payments/webhook"): {
        "summary": "An event of the payment provider, repeated until it is answered 200",
        "operationId": "receivePaymentEvent",
        "parameters": [
            {
                "name": "Payment-Signature",
                "in": "header",
                "description": "`t=<unix seconds>,v1=<hex HMAC-SHA256 of t, a dot and the body>`; several `v1` are "
                "allowed. Other providers sign in other headers.",
                "schema": {"type": "string"},
            }
        ],
        "requestBody": {"required": True, "content": _json("PaymentEvent")},
        "responses": {
            "200": {"description": "The event has taken its effect, now or before.", "content": _json("PaymentResult")}
        },
    },
    ("get", "/v1/sales/{sale_id}"): {
        "summary": "A published sale",
        "operationId": "getSale",
        "parameters": [
            _path_id("sale_id"),
            {"name": "If-None-Match", "in": "header", "schema": {"type": "string"}},
        ],
        "responses": {
            "200": {
                "description": "The sale. The entity tag does not cover `server_time`.",
                "headers": {"ETag": _header("Weak."), "Cache-Control": _header("public, max-age=1")},
                "content": _json("Sale"),
            },
            "304": {"description": "Nothing changed except `server_time`."},
        },
    },
    ("get", "/openapi.json"): {
        "summary": "This document",
        "operationId": "getOpenApi",
        "responses": {"200": {"description": "OpenAPI 3.1.", "content": {"application/json": {}}}},
    },
    ("get", "/livez"): {
        "summary": "Whether the worker is alive",
        "operationId": "getLiveness",
        "responses": {"200": {"description": "It does.", "content": _json("Liveness")}},
    },
    ("get", "/readyz"): {
        "summary": "Whether the worker is ready for orders; a problem names the missing parts",
        "operationId": "getReadiness",
        "responses": {"200": {"description": "The worker is ready.", "content": _json("Readiness")}},
    },
    ("get", "/metrics"): {
        "summary": "Prometheus metrics of all workers",
        "operationId": "getMetrics",
        "responses": {"200": {"description": "Text format.", "content": {"text/plain": {}}}},
    },
}


def _problems(codes: tuple[Problem, ...]) -> dict[str, Any]:
    """The response objects of problem codes, by status."""
    by_status: dict[int, list[Problem]] = {}
    for code in codes:
        by_status.setdefault(code.status, []).append(code)
    return {
        str(status): {
            "description": "; ".join(f"`{code.value}`: {code.summary}" for code in group),
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, group in sorted(by_status.items())
    }


def build() -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in _OPERATIONS.items():
        codes = CODES[method, path]
        built = {**operation, "responses": {**operation["responses"], **_problems((*codes, *ANYWHERE))}}
        if Problem.TOKEN_MISSING in codes:
            built["security"] = [{"buyer": []}]
        paths.setdefault(path, {})[method] = built
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Flashsale edge",
            "version": "1",
            "description": "Takes orders for flash sales. Every answer is 2xx, 304, or a problem with a code. Requests "
            "that are not HTTP/1.1 are answered by the parser below: 400 (malformed), 414 (target too long) or 431 "
            "(headers too large), without a body, and the connection closes.",
        },
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"buyer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


_BODY: Final = orjson.dumps(build())


async def openapi(request: Request) -> Answer:  # noqa: ARG001 - a handler's signature
    """GET /openapi.json."""
    return 200, [("content-type", "application/json"), ("cache-control", "public, max-age=300")], _BODY
