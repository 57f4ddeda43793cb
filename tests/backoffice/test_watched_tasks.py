"""A background task of a real backoffice that ends: an error line, /readyz names it, it runs again."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
import redis

from domain.topology import CACHE_CHANNEL
from tests.fixtures.fix_backoffice import BackofficeProcess
from tests.fixtures.fix_databases import Databases
from tests.fixtures.planted import PlantedError

WAIT_S_MAX = 30.0


def test_a_task_that_ends_is_named_by_readyz_and_runs_again(
    databases: Databases, redis_client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The channel of changes of the cache: nothing noticed its end, and this process served old rows for ever."""
    planted = PlantedError(tmp_path, "backoffice.caching.caches:Caches._received")
    monkeypatch.setenv("PYTHONPATH", planted.install())
    url = f"redis://127.0.0.1:{redis_client.get_connection_kwargs()['port']}"
    process = BackofficeProcess(tmp_path, f"{url}/0", databases)
    process.start()
    cache = redis.Redis.from_url(f"{url}/1")
    try:
        planted.begin()
        deadline = time.monotonic() + WAIT_S_MAX
        while (answer := httpx.get(f"{process.url}/readyz", timeout=5)).status_code == 200:
            assert time.monotonic() < deadline
            cache.publish(CACHE_CHANNEL, "product:1")
            time.sleep(0.02)
        assert answer.json()["missing"] == ["task cache changes"]
        assert '"task": "cache changes", "by": "KeyError"' in process.log
        assert 'flashsale_task_restarts_total{task="cache changes"}' in httpx.get(f"{process.url}/metrics").text
        planted.end()
        process.wait_ready()
        assert process.stop() == 0
    finally:
        process.kill()
        cache.close()


def test_a_task_that_keeps_ending_ends_the_process_with_an_error(
    databases: Databases, redis_client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = PlantedError(tmp_path, "backoffice.auth.sessions:Sessions.run")
    monkeypatch.setenv("PYTHONPATH", planted.install())
    planted.begin()
    process = BackofficeProcess(
        tmp_path, f"redis://127.0.0.1:{redis_client.get_connection_kwargs()['port']}/0", databases
    )
    process.start(wait=False)
    try:
        assert process.process is not None
        assert process.process.wait(60) == 1
        assert "the background task 'sessions' keeps ending" in process.log
    finally:
        process.kill()
