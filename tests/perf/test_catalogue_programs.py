"""The programs that measure the catalogue, at minimal size: they run and their parts add up; results are not judged."""

from __future__ import annotations

import psycopg
import pytest

from perf import cache_hits, search, shop
from perf.by_clock import run
from perf.cache_hits import Reading, Subject
from tests.fixtures.fix_stack import RunningStack


@pytest.mark.parametrize("redis_entries", [None, 100, 0])
@pytest.mark.parametrize("subject", [cache_hits.PRODUCTS, cache_hits.USERS], ids=lambda subject: subject.name)
async def test_cache_hits(subject: Subject, redis_entries: int | None) -> None:
    result = await cache_hits.measure(subject, Reading("small", redis_entries), rows=300, reads=4000, rate=500.0)
    assert result["reads"] + result["writes"] == 4000
    assert result["hit_rate"] == pytest.approx(result["of_process_tier"] + result["of_redis_tier"])
    assert (result["of_redis_tier"] == 0) == (redis_entries == 0)
    assert len(result["course"]) == cache_hits.SAMPLES
    assert cache_hits.as_text({"small": result, "share of the most popular tenth": 0.5})


def test_no_cache_of_a_tenth_of_the_rows_reaches_ninety_percent() -> None:
    assert cache_hits.share_of_most_popular(100_000, 0.1) == pytest.approx(0.8096, abs=1e-4)


def test_search(running_stack: RunningStack) -> None:
    with psycopg.connect(running_stack.stack.catalogue_dsn, autocommit=True) as connection:
        shop.fill(connection, 300)
        names = dict(connection.execute("SELECT sku, name FROM products WHERE sku LIKE 'SKU-00%'").fetchall())
        assert names[shop.sku(7)].endswith(shop.brand(7))
        connection.execute("DELETE FROM products WHERE sku = ANY (%s)", (list(names),))
    drawn = search.texts(200, products=300)
    assert {kind for kind, _ in drawn} == set(search.KINDS)
    requests = [search._request(text) for _, text in drawn[:20]]
    course = run(running_stack.stack.backoffice_url, requests, rate=50.0, seconds=0.4, clients=2)
    assert len(course.latency_ms) == 20
