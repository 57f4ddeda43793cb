"""Writes the published documents of the events: JSON Schemas and an AsyncAPI 3 document. Connects to nothing.

python -m tests.contract.events            docs/events/schemas/, docs/events/asyncapi.json
python -m tests.contract.events --release  also docs/events/released/: the formats that readers may rely on
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from domain.schemas import FAMILIES, Family
from domain.topology import TOPICS
from tests.contract.compatibility import breaks

FOLDER: Final = Path(__file__).resolve().parents[2] / "docs" / "events"
SCHEMAS: Final = FOLDER / "schemas"
RELEASED: Final = FOLDER / "released"
_UUID_KEY: Final = {"type": "string", "format": "uuid"}


def files() -> dict[Path, str]:
    """The expected content of each generated file."""
    texts = {SCHEMAS / name_of(family): _text(family.document) for family in FAMILIES.values()}
    return texts | {FOLDER / "asyncapi.json": _text(asyncapi())}


def name_of(family: Family) -> str:
    """`order-1.json`."""
    return f"{family.name}-{family.version}.json"


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3.0 document (https://www.asyncapi.com/docs/reference/specification/v3.0.0)."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Flashsale events",
            "version": "1",
            "license": {"name": "Apache-2.0"},
            "description": "What happens to orders, payments, users, products and sales. Each record is a CloudEvent 1.0 "
            "in the binary mode of the Kafka protocol binding. Delivery is at least once: drop a `ce_id` that you know.",
        },
        "defaultContentType": "application/json",
        "channels": {family.name: _channel(family) for family in FAMILIES.values()},
        "operations": {
            f"receive_{family.name}_events": {
                "action": "receive",
                "channel": {"$ref": f"#/channels/{family.name}"},
                "summary": f"Events about one {family.name}, in order for each {family.key}.",
            }
            for family in FAMILIES.values()
        },
        "components": {
            "messages": {type_: _message(family, type_) for family in FAMILIES.values() for type_ in family.types},
            "schemas": {family.name: family.document for family in FAMILIES.values()},
        },
    }


def _channel(family: Family) -> dict[str, Any]:
    (topic,) = [topic for topic in TOPICS if topic.name == family.topic]
    return {
        "address": family.topic,
        "description": f"Retained for {topic.retention_s // 86_400} days, unless the carrier has no room.",
        "messages": {type_: {"$ref": f"#/components/messages/{type_}"} for type_ in family.types},
        "bindings": {"kafka": {"topic": family.topic, "partitions": topic.partitions, "bindingVersion": "0.5.0"}},
    }


def _message(family: Family, type_: str) -> dict[str, Any]:
    return {
        "name": type_,
        "summary": family.types[type_],
        "contentType": "application/json",
        "headers": _headers(family, type_),
        "payload": {"$ref": f"#/components/schemas/{family.name}"},
        "bindings": {"kafka": {"key": {**_UUID_KEY, "description": family.key}, "bindingVersion": "0.5.0"}},
    }


def _headers(family: Family, type_: str) -> dict[str, Any]:
    text = {"type": "string"}
    properties: dict[str, Any] = {
        "ce_specversion": {"const": "1.0"},
        "ce_id": {**text, "description": "Unique, and the same when the event is delivered again."},
        "ce_type": {"const": type_},
        "ce_source": {"const": f"urn:flashsale:{family.name}"},
        "ce_subject": {**text, "description": "The thing that the event is about."},
        "ce_time": {**text, "format": "date-time"},
        "ce_dataschema": {"const": family.urn},
        "ce_version": {
            **text,
            "pattern": "^[0-9]+$",
            "description": "Version of the subject: drop older ones. It may skip.",
        },
        "content-type": {"const": "application/json"},
    }
    traced = {"traceparent": {**text, "description": "W3C Trace Context, where it is known."}}
    return {"type": "object", "required": sorted(properties), "properties": properties | traced}


def _text(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def release(folder: Path = RELEASED) -> list[str]:
    """Copy the formats that readers may rely on from now on; the breaks of released ones, which stay then."""
    found = {folder / name_of(family): family.document for family in FAMILIES.values()}
    problems = [
        f"{path.name}: {problem}"
        for path, document in found.items()
        if path.exists()
        for problem in breaks(json.loads(path.read_text(encoding="utf-8")), document)
    ]
    if not problems:
        folder.mkdir(exist_ok=True)
        for path, document in found.items():
            path.write_text(_text(document), encoding="utf-8")
    return problems


if __name__ == "__main__":
    SCHEMAS.mkdir(parents=True, exist_ok=True)
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
    if "--release" in sys.argv and (problems := release()):
        raise SystemExit("Not released: raise the version of the format.\n" + "\n".join(problems))
