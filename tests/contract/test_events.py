"""The published documents of the events are current and valid, and no change breaks a reader of a released format."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from domain.events import event_headers, order_event
from domain.orders import OrderStatus
from domain.schemas import EVENT_TYPES, FAMILIES
from tests.contract import events
from tests.contract.compatibility import breaks
from tests.domain.test_orders import ENTRY

ASYNCAPI_SCHEMA = Path(__file__).with_name("asyncapi-3.0.0.schema.json.gz")  # npm @asyncapi/specs, Apache-2.0
RELEASED = sorted(events.RELEASED.glob("*.json"))


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def test_the_published_documents_are_current() -> None:
    expected = events.files()
    for path, text in expected.items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run `python -m tests.contract.events`"
    assert set(events.SCHEMAS.iterdir()) == {path for path in expected if path.parent == events.SCHEMAS}


def test_the_asyncapi_document_is_valid() -> None:
    validator = jsonschema_rs.validator_for(json.loads(gzip.decompress(ASYNCAPI_SCHEMA.read_bytes())))
    document = events.asyncapi()
    assert [str(error) for error in validator.iter_errors(document)] == []
    assert set(document["components"]["messages"]) == set(EVENT_TYPES)
    document["channels"]["order"]["address"] = 7
    assert not validator.is_valid(document)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_schema_is_valid(family: Any) -> None:
    jsonschema_rs.meta.validate(family.document)


def test_every_format_was_released_or_is_newer() -> None:
    """A reader may rely on `docs/events/released`. It has no family that is not written any more."""
    assert {path.name.rpartition("-")[0] for path in RELEASED} <= set(FAMILIES)
    for family in FAMILIES.values():
        versions = [int(path.stem.rpartition("-")[2]) for path in RELEASED if path.stem.startswith(f"{family.name}-")]
        assert family.version in {*versions, max(versions, default=0) + 1}


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.stem)
def test_no_change_breaks_readers_of_a_released_format(path: Path) -> None:
    """A change that does needs the next version: raise it in domain, and tell readers before."""
    family = FAMILIES[path.stem.rpartition("-")[0]]
    if path.name == events.name_of(family):
        assert breaks(read(path), family.document) == []


def without(schema: dict[str, Any], name: str) -> None:
    del schema["properties"][name]


def line(schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = schema["properties"]["items"]["items"]
    return found


PLANTED: dict[str, Any] = {
    "a member is removed": lambda s: without(s, "currency"),
    "a member of a line is removed": lambda s: without(line(s), "sku"),
    "a type changes": lambda s: s["properties"]["total_minor"].update(type="string"),
    "a type becomes wider": lambda s: s["properties"]["currency"].update(type=["string", "null"]),
    "a new member is required": lambda s: (
        s["properties"].update(channel={"type": "string"}),
        s["required"].append("channel"),
    ),
    "a member is not required any more": lambda s: s["required"].remove("status"),
    "a value is removed": lambda s: s["properties"]["status"]["enum"].remove("rejected"),
    "a value is added": lambda s: s["properties"]["status"]["enum"].append("shipped"),
    "a pattern is added": lambda s: line(s)["properties"]["sku"].update(pattern="^A"),
    "a bound changes": lambda s: line(s)["properties"]["quantity"].update(minimum=2),
    "an array becomes an object": lambda s: s["properties"]["items"].pop("items"),
    "a type of event is removed": lambda s: s["x-types"].pop("order.paid"),
    "the key changes": lambda s: s.update({"x-key": "order id"}),
    "the topic changes": lambda s: s.update({"x-topic": "orders.v2"}),
    "other members are refused": lambda s: s.update(additionalProperties=False),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_breaks_are_found(name: str) -> None:
    released = FAMILIES["order"].document
    current = copy.deepcopy(released)
    PLANTED[name](current)
    assert len(breaks(released, current)) >= 1


def test_a_release_replaces_no_format_that_readers_rely_on(tmp_path: Path) -> None:
    assert events.release(tmp_path) == []
    assert {path.name: read(path) for path in tmp_path.iterdir()} == {path.name: read(path) for path in RELEASED}
    document = read(tmp_path / "order-1.json")
    document["properties"]["gone"] = {"type": "string"}
    (tmp_path / "order-1.json").write_text(json.dumps(document))
    (tmp_path / "user-1.json").unlink()
    assert events.release(tmp_path) == ["order-1.json: data.gone is gone"]
    assert "gone" in read(tmp_path / "order-1.json")["properties"] and not (tmp_path / "user-1.json").exists()


def test_what_readers_ignore_may_change() -> None:
    released = FAMILIES["order"].document
    current = copy.deepcopy(released)
    current["properties"]["channel"] = {"type": "string"}
    current["x-types"]["order.shipped"] = "The parcel is on its way."
    current["title"] = current["properties"]["currency"]["description"] = "Other words."
    assert breaks(released, current) == []


def test_the_consumer_of_the_page_works() -> None:
    page = (events.FOLDER.parent / "events.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - our own page
    paid = order_event(ENTRY.becoming(OrderStatus.PAID, at_ms=1))
    value = json.dumps(paid["data"]).encode()
    assert not names["handle"](event_headers(order_event(ENTRY)), value), "another type"
    assert [names["handle"](event_headers(paid), value) for _ in range(2)] == [True, False]
    with pytest.raises(ValueError, match="newer format"):
        names["handle"](event_headers(paid | {"schema": 2}), value)
    assert all(type_ in page for type_ in EVENT_TYPES)
