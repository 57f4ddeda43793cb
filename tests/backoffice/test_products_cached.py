"""Products through the cache over HTTP: two processes, entity tags, racing changes, a cache Redis that dies."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from devstack.servers import RedisServer
from runtime.tokens.keys import load_staff_keys, mint_staff_token
from tests.fixtures.fix_backoffice import BackofficeProcess, Staff
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_stack import eventually


def shows_price(staff: Staff, path: str, price: int) -> bool:
    shown: int = staff.http.get(path).json()["price_minor"]
    return shown == price


@pytest.fixture(scope="module")
def cache_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A cache Redis of this module's own."""
    server = RedisServer(tmp_path_factory.mktemp("cache-redis"), durable=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def two_processes(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, cache_redis: RedisServer, migrated: Databases
) -> Iterator[tuple[BackofficeProcess, BackofficeProcess]]:
    """Two backoffices with the same keys over the same databases."""
    folder = tmp_path_factory.mktemp("two-backoffices")
    environ = {"FLASHSALE_CACHE_URL": cache_redis.url}
    first, second = (BackofficeProcess(folder, redis_server.url, migrated, environ) for _ in range(2))
    for process in (first, second):
        process.start()
    yield first, second
    for process in (first, second):
        process.kill()


@pytest.fixture
def two(two_processes: tuple[BackofficeProcess, BackofficeProcess]) -> Iterator[tuple[Staff, Staff]]:
    """A client of each, over no products."""
    key = load_staff_keys(two_processes[0].staff_key_file).signing
    token = mint_staff_token(key, user_id=UUID(int=1), role="admin", issuer="flashsale", ttl_s=900)
    clients = tuple(Staff(process.url, token) for process in two_processes)
    with psycopg.connect(two_processes[0].databases.catalogue_dsn, autocommit=True) as connection:
        connection.execute("DELETE FROM products")
    yield clients[0], clients[1]
    for client in clients:
        client.http.close()


def count(staff: Staff, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(staff.http.get("/metrics").text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def hits(staff: Staff, tier: str) -> float:
    return count(staff, "flashsale_cache_hits_total", cache="product", tier=tier)


def test_reads_come_from_the_tiers_and_changes_reach_both_processes(two: tuple[Staff, Staff]) -> None:
    one, other = two
    path = f"/v1/products/{one.product()['id']}"
    before = [hits(staff, tier) for staff in two for tier in ("process", "redis")]
    for staff in (one, one, other, other):
        assert staff.http.get(path).json()["price_minor"] == 1999
    assert [hits(staff, tier) for staff in two for tier in ("process", "redis")] == [
        before[0] + 1, before[1], before[2] + 1, before[3] + 1,
    ]  # fmt: skip
    for version in range(1, 6):
        writer, reader = (one, other) if version % 2 else (other, one)
        changed = writer.http.patch(path, json={"price_minor": version}, headers={"If-Match": f'"{version}"'})
        assert changed.status_code == 200
        assert writer.http.get(path).json()["price_minor"] == version  # at once
        eventually(partial(shows_price, reader, path, version))
    assert one.http.delete(path, headers={"If-Match": '"6"'}).status_code == 204
    assert one.http.get(path).status_code == 404
    eventually(lambda: other.http.get(path).status_code == 404)


def test_conditional_reads_are_answered_out_of_the_cache(two: tuple[Staff, Staff]) -> None:
    one, other = two
    path = f"/v1/products/{one.product()['id']}"
    for tags in ('"1"', 'W/"1"', '"7", W/"1"', "*"):
        for staff in two:
            answer = staff.http.get(path, headers={"If-None-Match": tags})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", '"1"')
            assert staff.http.head(path, headers={"If-None-Match": tags}).status_code == 304
    assert one.http.patch(path, json={"name": "B"}, headers={"If-Match": '"1"'}).status_code == 200
    eventually(lambda: other.http.get(path, headers={"If-None-Match": '"1"'}).status_code == 200)
    assert other.http.get(path, headers={"If-None-Match": '"1"'}).headers["etag"] == '"2"'


def test_a_batch_reaches_both_processes(two: tuple[Staff, Staff]) -> None:
    one, other = two
    made = [one.product(sku=f"B-{n}") for n in range(50)]
    for product in made:
        assert other.http.get(f"/v1/products/{product['id']}").json() == product
    items = [{"sku": product["sku"], "price_minor": 5} for product in made[:25]]
    assert one.http.post("/v1/products/import", json={"items": items}).status_code == 200

    def prices(staff: Staff) -> list[Any]:
        return [staff.http.get(f"/v1/products/{product['id']}").json()["price_minor"] for product in made]

    assert prices(one) == [5] * 25 + [1999] * 25
    eventually(lambda: prices(other) == [5] * 25 + [1999] * 25)


def test_of_changes_and_a_removal_at_once_each_knows_what_became_of_it(two: tuple[Staff, Staff]) -> None:
    for turn in range(5):
        path = f"/v1/products/{two[0].product()['id']}"

        def act(place: int, path: str = path) -> httpx.Response:
            staff = two[place % 2]
            if place == 3:
                return staff.http.delete(path, headers={"If-Match": '"1"'})
            return staff.http.patch(path, json={"price_minor": place}, headers={"If-Match": '"1"'})

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(act, range(8)))
        won = [answer for answer in answers if answer.status_code in (200, 204)]
        assert len(won) == 1, turn
        removed = won[0].status_code == 204
        lost = {answer.status_code for answer in answers if answer is not won[0]}
        assert lost <= ({412, 404} if removed else {412})
        for staff in two:
            wanted = (404,) if removed else (200, won[0].json()["price_minor"])
            eventually(
                lambda staff=staff, wanted=wanted, path=path: (  # type: ignore[misc]
                    (answer := staff.http.get(path)).status_code, *([answer.json()["price_minor"]] if len(wanted) > 1 else [])
                ) == wanted
            )  # fmt: skip


def test_without_the_cache_redis_products_are_read_and_changed(
    two: tuple[Staff, Staff], cache_redis: RedisServer
) -> None:
    one, other = two
    path = f"/v1/products/{one.product()['id']}"
    for staff in two:
        assert staff.http.get(path).status_code == 200
    cache_redis.kill()
    try:
        assert one.http.patch(path, json={"price_minor": 1}, headers={"If-Match": '"1"'}).status_code == 200
        assert one.http.get(path).json()["price_minor"] == 1
        eventually(lambda: other.http.get(path).json()["price_minor"] == 1)
        assert count(one, "flashsale_cache_invalidations_owed") == 1
    finally:
        cache_redis.start()
    eventually(lambda: count(one, "flashsale_cache_invalidations_owed") == 0)
    eventually(lambda: all(count(staff, "flashsale_cache_following") == 1 for staff in two))
    assert one.http.patch(path, json={"price_minor": 2}, headers={"If-Match": '"2"'}).status_code == 200
    eventually(lambda: other.http.get(path).json()["price_minor"] == 2)
