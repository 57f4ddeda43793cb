"""Products: entity tags, cursors, search, invalid input."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.fixtures.fix_backoffice import BackofficeProcess, Staff

GOOD = {"sku": "SKU-1", "name": "A thing", "price_minor": 1999, "currency": "EUR"}


def test_life_of_a_product(staff: Staff, backoffice: BackofficeProcess) -> None:
    attributes = {"colour": "blue", "weight_g": 120, "tags": ["a", "b"], "new": True, "size": 1.5, "none": None}
    made = staff.http.post("/v1/products", json={**GOOD, "description": "two\nlines", "attributes": attributes})
    assert made.status_code == 201
    product = made.json()
    assert product == {
        **GOOD,
        "id": product["id"],
        "description": "two\nlines",
        "attributes": attributes,
        "active": True,
    }
    path = f"/v1/products/{product['id']}"
    assert made.headers["location"] == path
    read = httpx.get(backoffice.url + path)  # public
    assert read.json() == product
    assert read.headers["etag"] == made.headers["etag"]
    unchanged = httpx.get(backoffice.url + path, headers={"If-None-Match": read.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    changed = staff.http.patch(
        path, json={"price_minor": 5, "active": False}, headers={"If-Match": read.headers["etag"]}
    )
    assert changed.json() == {**product, "price_minor": 5, "active": False}
    assert changed.headers["etag"] != read.headers["etag"]
    stale = staff.http.patch(path, json={"price_minor": 6}, headers={"If-Match": read.headers["etag"]})
    assert (stale.status_code, stale.json()["code"]) == (412, "precondition_failed")
    assert staff.http.delete(path, headers={"If-Match": read.headers["etag"]}).status_code == 412
    assert staff.http.delete(path, headers={"If-Match": changed.headers["etag"]}).status_code == 204
    for gone in (
        staff.http.get(path),
        staff.http.patch(path, json={}, headers={"If-Match": '"1"'}),
        staff.http.delete(path, headers={"If-Match": '"1"'}),
    ):
        assert (gone.status_code, gone.json()["code"]) == (404, "product_not_found")


def test_if_match_is_required_and_strict(staff: Staff) -> None:
    path = f"/v1/products/{staff.product()['id']}"
    for answer in (staff.http.patch(path, json={"name": "x"}), staff.http.delete(path)):
        assert (answer.status_code, answer.json()["code"]) == (428, "precondition_required")
    for tag in (
        "1",
        '"',
        '""',
        '"1',
        'W/"1"',
        '"01x"',
        '"-1"',
        '"99999999999999999999"',
        '"1" "2"',
        '*, "1"',
        '"\u0661"',
    ):
        answer = staff.http.patch(path, json={"name": "x"}, headers={"If-Match": tag.encode()})
        assert answer.status_code in (412, 428), tag
    assert staff.http.get(path).json()["name"] == "A thing"


def test_if_match_takes_several_tags_or_any(staff: Staff) -> None:
    path = f"/v1/products/{staff.product()['id']}"
    for name, tag in (("one of them", '"7", W/"9",  "1"'), ("any", "*")):
        answer = staff.http.patch(path, json={"name": name}, headers={"If-Match": tag})
        assert (answer.status_code, answer.json()["name"]) == (200, name)
    for tag in ('"1", "2"', 'W/"3"'):
        assert staff.http.patch(path, json={"name": "x"}, headers={"If-Match": tag}).status_code == 412
    assert staff.http.delete(path, headers={"If-Match": "*"}).status_code == 204
    assert staff.http.delete(path, headers={"If-Match": "*"}).status_code == 404


def test_of_two_changes_at_once_one_wins(staff: Staff) -> None:
    path = f"/v1/products/{staff.product()['id']}"
    tag = staff.http.get(path).headers["etag"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda n: staff.http.patch(path, json={"price_minor": n}, headers={"If-Match": tag}), range(8))
        )
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 7


def test_skus_are_unique(staff: Staff) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: staff.http.post("/v1/products", json=GOOD), range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"sku_taken"}
    other = staff.product(sku="SKU-2")
    answer = staff.http.patch(f"/v1/products/{other['id']}", json={"sku": "SKU-1"}, headers={"If-Match": '"1"'})
    assert (answer.status_code, answer.json()["code"]) == (409, "sku_taken")


def test_list_goes_on_where_it_stopped(staff: Staff) -> None:
    made = [staff.product(name=f"Lamp {n}")["id"] for n in range(7)]
    seen: list[str] = []
    cursor: str | None = None
    pages = 0
    while pages == 0 or cursor is not None:
        query = {"limit": "3"} if cursor is None else {"limit": "3", "cursor": cursor}
        page = staff.http.get("/v1/products", params=query).json()
        assert set(page) == {"items", "next_cursor"}
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        pages += 1
        staff.product(name="made meanwhile")
    assert (seen, pages) == (made[::-1], 3)


def test_search(staff: Staff) -> None:
    staff.product(name="Blue LAMP", sku="L-1")
    staff.product(name="Chair", sku="C-1", description="goes with a lamp")
    staff.product(name="100% wool_sock \\ o", sku="W-1")

    def found(text: str) -> list[str]:
        return sorted(item["sku"] for item in staff.http.get("/v1/products", params={"q": text}).json()["items"])

    assert found("lamp") == ["C-1", "L-1"]
    assert found("c-1") == ["C-1"]
    assert found("wool_sock") == found("100%") == ["W-1"]
    assert found("%") == found("_") == found("\\") == []
    assert found("'; DROP TABLE products; --") == []
    assert found("lamp blue & green") == []


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"sku": ""}, "/sku"),
        ({"sku": "a b"}, "/sku"),
        ({"sku": "a\n"}, "/sku"),
        ({"sku": "\u0661"}, "/sku"),
        ({"sku": "a" * 65}, "/sku"),
        ({"sku": 1}, "/sku"),
        ({"name": ""}, "/name"),
        ({"name": "x" * 201}, "/name"),
        ({"name": "\x00"}, "/name"),
        ({"description": "\x00"}, "/description"),
        ({"description": "x" * 10_001}, "/description"),
        ({"price_minor": -1}, "/price_minor"),
        ({"price_minor": 1.5}, "/price_minor"),
        ({"price_minor": "5"}, "/price_minor"),
        ({"price_minor": True}, "/price_minor"),
        ({"price_minor": 10**12 + 1}, "/price_minor"),
        ({"price_minor": 10**30}, "/price_minor"),
        ({"currency": "eur"}, "/currency"),
        ({"currency": "EURO"}, "/currency"),
        ({"active": "yes"}, "/active"),
        ({"active": None}, "/active"),
        ({"attributes": []}, "/attributes"),
        ({"attributes": {"a": {"b": 1}}}, "/attributes/a"),
        ({"attributes": {"k" * 65: 1}}, "/attributes/" + "k" * 65),
        ({"attributes": {"a/b~c": {}}}, "/attributes/a~1b~0c"),
        ({"attributes": {"a": "\x00"}}, "/attributes/a"),
        ({"attributes": {"a": 10**30}}, "/attributes/a"),
        ({"attributes": {"a": 2**53}}, "/attributes/a"),
        ({"attributes": {"a": ["x", 1]}}, "/attributes/a"),
        ({"attributes": {str(n): n for n in range(65)}}, "/attributes"),
        ({"id": "01890000-0000-7000-8000-000000000001"}, "/id"),
        ({"colour": "blue"}, "/colour"),
    ],
)
def test_products_that_are_not_valid(staff: Staff, members: dict[str, Any], pointer: str) -> None:
    answer = staff.http.post("/v1/products", json={**GOOD, **members})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert staff.http.get("/v1/products").json()["items"] == []


def test_changes_that_are_not_valid(staff: Staff) -> None:
    path = f"/v1/products/{staff.product()['id']}"
    for body in ({"name": None}, {"price_minor": -1}, {"version": 7}, [], "x"):
        answer = staff.http.patch(path, json=body, headers={"If-Match": '"1"'})
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed"), body
    assert staff.http.get(path).headers["etag"] == '"1"'
    assert staff.http.patch(path, json={"description": ""}, headers={"If-Match": '"1"'}).status_code == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"sku": "\xff"}', b'{"sku": NaN}', b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"name": "\\ud800"}']
)
def test_bodies_that_are_not_json(staff: Staff, body: bytes) -> None:
    answer = staff.http.post("/v1/products", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) in ((400, "malformed_request"), (422, "validation_failed"))


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "limit=x", "limit=-1", "cursor=x", "cursor=", "cursor=AAAA", "q=", "q=%00", "limit="],
)
def test_lists_that_are_not_valid(staff: Staff, query: str) -> None:
    answer = staff.http.get(f"/v1/products?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")


def test_a_cursor_belongs_to_its_list(staff: Staff) -> None:
    for _ in range(2):
        staff.product()
    cursor = staff.http.get("/v1/products", params={"limit": 1}).json()["next_cursor"]
    for path in ("/v1/sales", "/v1/orders"):
        assert staff.http.get(path, params={"cursor": cursor}).status_code == 422


@pytest.mark.parametrize(
    "product_id",
    ["x", "01890000-0000-7000-8000-00000000000", "01890000000070008000000000000001", "{01890000}", "%00", "..%2f"],
)
def test_ids_that_cannot_exist(staff: Staff, product_id: str) -> None:
    answer = staff.http.get(f"/v1/products/{product_id}")
    assert (answer.status_code, answer.json()["code"]) == (404, "product_not_found")


def test_inactive_products_are_not_public(staff: Staff, backoffice: BackofficeProcess) -> None:
    product = staff.product(active=False)
    path = f"/v1/products/{product['id']}"
    for stranger in (
        httpx.get(backoffice.url + path),
        httpx.get(backoffice.url + path, headers={"If-None-Match": "*"}),
    ):
        assert (stranger.status_code, stranger.json()["code"]) == (404, "product_not_found")
    mine = staff.http.get(path)
    assert (mine.status_code, mine.json()) == (200, product)
    staff.http.patch(path, json={"active": True}, headers={"If-Match": mine.headers["etag"]})
    assert httpx.get(backoffice.url + path).status_code == 200
