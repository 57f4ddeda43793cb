"""Input that two readers could understand differently: duplicates, invisible text, compositions, currencies, keys."""

from __future__ import annotations

import json

import pytest

from backoffice.web.json_body import VALUES_MAX
from tests.fixtures.fix_backoffice import Staff

GOOD = {"sku": "SKU-1", "name": "A thing", "price_minor": 1999, "currency": "EUR"}
JSON_TYPE = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"sku":"A","sku":"B","name":"x","price_minor":1,"currency":"EUR"}', "two members with the same name"),
        (b'{"sku":"A","\\u0073ku":"B"}', "two members with the same name"),
        (b'{"sku":"A","attributes":{"a":{"b":1,"b":2}}}', "two members with the same name"),
        (b'{"price_minor":NaN}', "not valid JSON"),
        (b'{"price_minor":Infinity}', "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        ('{"sku":"A"}'.encode("utf-16"), "not valid JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b"{" + b",".join(b'"m%d":0' % place for place in range(VALUES_MAX + 1)) + b"}", "values"),
        (b'{"attributes":{"a":[' + b",".join([b"0"] * (VALUES_MAX + 1)) + b"]}}", "values"),
        (b"[" + b",".join([b'{"a":1}'] * (VALUES_MAX + 1)) + b"]", "values"),
    ],
)
def test_bodies_without_one_meaning_or_without_bounds(staff: Staff, body: bytes, detail: str) -> None:
    answer = staff.http.post("/v1/products", content=body, headers=JSON_TYPE)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    assert detail in answer.json()["detail"]


def test_the_largest_product_is_within_the_bound(staff: Staff) -> None:
    attributes = {f"attribute {place}": [f"text {text}" for text in range(50)] for place in range(64)}
    answer = staff.http.post("/v1/products", json={**GOOD, "attributes": attributes})
    assert (answer.status_code, answer.json()["attributes"]) == (201, attributes)


@pytest.mark.parametrize(
    "name",
    [
        "\u200b",
        "A\u200bda",
        "\u3164",
        "\u2800\u2800",
        "na\u00adme",
        "\ufeffAda",
        "\u2066Ada",
        "Ada\U000e0041",
        "A\r\nB",
    ],
)
def test_names_that_are_not_what_they_show(staff: Staff, name: str) -> None:
    answer = staff.http.post("/v1/products", json={**GOOD, "name": name})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/name")


@pytest.mark.parametrize(
    "name", ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f468\u200d\U0001f469", "é"]
)
def test_names_in_every_script_are_taken(staff: Staff, name: str) -> None:
    assert staff.http.post("/v1/products", json={**GOOD, "name": name}).json()["name"] == name


def test_equal_texts_become_equal_bytes(staff: Staff) -> None:
    typed = {
        **GOOD,
        "name": "Cafe\u0301",
        "description": "one\r\ntwo\rthree",
        "attributes": {"cafe\u0301": ["e\u0301", "a\r\nb"]},
    }
    product = staff.http.post("/v1/products", json=typed).json()
    assert product["name"] == "Caf\u00e9" and product["description"] == "one\ntwo\nthree"
    assert product["attributes"] == {"caf\u00e9": ["\u00e9", "a\nb"]}
    for query in ("Cafe\u0301", "Caf\u00e9"):
        found = staff.http.get("/v1/products", params={"q": query}).json()["items"]
        assert [item["id"] for item in found] == [product["id"]]


def test_importing_another_composition_of_the_same_text_changes_nothing(staff: Staff) -> None:
    staff.product(**{**GOOD, "name": "Caf\u00e9"})
    answer = staff.http.post("/v1/products/import", json={"items": [{"sku": "SKU-1", "name": "Cafe\u0301"}]})
    assert [result["outcome"] for result in answer.json()["results"]] == ["unchanged"]


@pytest.mark.parametrize("currency", ["XXX", "ABC", "eur", "EU", "EURO", "XAU", "", None])
def test_currencies_are_of_iso_4217(staff: Staff, currency: str | None) -> None:
    answer = staff.http.post("/v1/products", json={**GOOD, "currency": currency})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/currency")


def test_a_key_that_is_not_ascii_is_refused(staff: Staff) -> None:
    """Without it, the request would create another sale at each repetition."""
    body = {
        "name": "Sale",
        "starts_at": "2020-01-01T00:00:00Z",
        "ends_at": "2099-01-01T00:00:00Z",
        "hold_seconds": 600,
        "items": [{"sku": staff.product()["sku"], "stock": 1, "price_minor": 500, "per_user_limit": 2}],
    }
    for key in ("clé".encode(), "clé".encode("latin-1"), b"\xff"):
        headers = [(b"Idempotency-Key", key), (b"Content-Type", b"application/json")]
        answer = staff.http.post("/v1/sales", content=json.dumps(body), headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request"), key
    assert staff.http.get("/v1/sales").json()["items"] == []
