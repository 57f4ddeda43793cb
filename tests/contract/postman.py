"""Makes docs/postman.json, a Postman collection (format 2.1) of both services, from their OpenAPI documents.

`python -m tests.contract.postman` writes it; a test fails when it is out of date. Bodies are the smallest that the
schemas describe. Tokens, base addresses and ids are variables of the collection; logging in fills the token in.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from backoffice.application import Backoffice
from backoffice.web.openapi import document
from edge.openapi import build
from runtime.process.settings import load_settings
from runtime.tokens.key_watch import KeyWatch
from runtime.tokens.keys import create_staff_key, create_token_keys, load_staff_keys, load_token_keys

FILE = Path(__file__).parents[2] / "docs" / "postman.json"
SCHEMA = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"
METHODS = ("get", "post", "put", "patch", "delete")
_PARAMETER = re.compile(r"\{([a-z_]+)\}")
# Values that JSON Schema cannot give, by header or member.
_HEADER_VALUES = {"Idempotency-Key": "{{$guid}}", "If-Match": "*"}
_MEMBER_VALUES = {"sku": "SKU-1", "email": "buyer@example.com", "currency": "EUR", "ends_at": "2030-01-01T00:00:00Z"}
_KEEP_TOKEN = [
    "const answer = pm.response.json();",
    "if (answer.access_token) {",
    "  pm.collectionVariables.set('token', answer.access_token);",
    "  pm.collectionVariables.set('refresh_token', answer.refresh_token);",
    "}",
]


def collection(services: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The collection; `services` by the name of the variable that holds their base address."""
    ids = sorted(
        {name for described in services.values() for path in described["paths"] for name in _PARAMETER.findall(path)}
    )
    variables = {
        "edge_url": "http://127.0.0.1:8080",
        "backoffice_url": "http://127.0.0.1:8081",
        "token": "",
        "refresh_token": "",
        **dict.fromkeys(ids, ""),
    }
    return {
        "info": {
            "name": "Flashsale",
            "description": "Made from the OpenAPI documents of edge and backoffice.",
            "schema": SCHEMA,
        },
        "auth": {"type": "bearer", "bearer": [{"key": "token", "value": "{{token}}", "type": "string"}]},
        "variable": [{"key": name, "value": value} for name, value in variables.items()],
        "item": [_service(variable, described) for variable, described in services.items()],
    }


def _service(variable: str, described: Mapping[str, Any]) -> dict[str, Any]:
    folders: dict[str, list[dict[str, Any]]] = {}
    for path, operations in described["paths"].items():
        for method in METHODS:
            if method in operations:
                tag = operations[method].get("tags", [path.split("/")[2] if path.startswith("/v1/") else "operations"])[
                    0
                ]
                folders.setdefault(tag, []).append(_request(variable, described, path, method, operations[method]))
    return {
        "name": described["info"]["title"],
        "item": [{"name": tag, "item": requests} for tag, requests in sorted(folders.items())],
    }


def _request(
    variable: str, described: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]
) -> dict[str, Any]:
    parameters = operation.get("parameters", [])
    raw = f"{{{{{variable}}}}}" + _PARAMETER.sub(r"{{\1}}", path)
    request: dict[str, Any] = {
        "method": method.upper(),
        "description": operation.get("description", operation["summary"]),
        "header": [
            {
                "key": each["name"],
                "value": _HEADER_VALUES.get(each["name"], ""),
                "disabled": not each.get("required", False),
            }
            for each in parameters
            if each["in"] == "header"
        ],
        "url": {
            "raw": raw,
            "host": [f"{{{{{variable}}}}}"],
            "path": _PARAMETER.sub(r"{{\1}}", path).strip("/").split("/"),
            "query": [
                {"key": each["name"], "value": "", "disabled": True} for each in parameters if each["in"] == "query"
            ],
        },
    }
    if "security" not in operation:
        request["auth"] = {"type": "noauth"}
    body = operation.get("requestBody")
    if body is not None:
        schema = body["content"]["application/json"]["schema"]
        request["header"].append({"key": "Content-Type", "value": "application/json"})
        raw_body = json.dumps(example(schema, described), indent=2, ensure_ascii=False)
        request["body"] = {"mode": "raw", "raw": raw_body, "options": {"raw": {"language": "json"}}}
    item: dict[str, Any] = {"name": operation["summary"], "request": request}
    if path in ("/v1/auth/login", "/v1/auth/refresh"):
        item["event"] = [{"listen": "test", "script": {"type": "text/javascript", "exec": _KEEP_TOKEN}}]
    return item


def example(schema: Mapping[str, Any], described: Mapping[str, Any], *, name: str = "") -> Any:
    """The smallest value that the schema describes."""
    if "$ref" in schema:
        return example(described["components"]["schemas"][schema["$ref"].rpartition("/")[2]], described, name=name)
    for choices in ("anyOf", "oneOf"):
        if choices in schema:
            return example(next(iter(schema[choices])), described, name=name)
    if name == "refresh_token":
        return "{{refresh_token}}"
    for given in ("const", "default"):
        if given in schema:
            return schema[given]
    if "enum" in schema:
        return schema["enum"][0]
    return _by_type(schema, described, name)


def _by_type(schema: Mapping[str, Any], described: Mapping[str, Any], name: str) -> Any:
    kind = schema.get("type")
    if kind == "object":
        members: Iterable[str] = schema.get("required") or list(schema.get("properties", {}))[:1]
        return {member: example(schema["properties"][member], described, name=member) for member in members}
    if kind == "array":
        return [example(schema["items"], described, name=name)] * max(1, schema.get("minItems", 1))
    if kind in ("integer", "number"):
        return max(1, schema.get("minimum", 1))
    if kind == "boolean":
        return True
    if name in _MEMBER_VALUES:
        return _MEMBER_VALUES[name]
    if schema.get("format") == "date-time":
        return "2026-01-01T00:00:00Z"
    return (name or "text").ljust(schema.get("minLength", 0), "-")


def documents() -> dict[str, dict[str, Any]]:
    """Both services' descriptions, as they would answer them; nothing is connected to."""
    with tempfile.TemporaryDirectory() as folder:
        keys, staff_key = Path(folder) / "keys.json", Path(folder) / "staff.pem"
        create_token_keys(keys)
        create_staff_key(staff_key)
        settings = load_settings({"FLASHSALE_SHARD_DSNS": ",".join(["postgresql://nowhere.invalid/shard"] * 4)})
        application = Backoffice(
            settings, buyer_keys=KeyWatch(keys, load_token_keys), staff_keys=KeyWatch(staff_key, load_staff_keys)
        )
    return {"edge_url": build(), "backoffice_url": document(application.routes, version="1")}


def text() -> str:
    """The file as it should be."""
    return json.dumps(collection(documents()), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
