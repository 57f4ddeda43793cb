"""A shard that keeps its connections and answers nothing: the backoffice says so in time, and recovers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
import redis

from backoffice import stores as stores_module
from backoffice.stores import Stores
from backoffice.web.health import Health
from backoffice.web.messages import Call, Refused
from faults.proxy import FaultProxy
from runtime.postgres import databases as databases_module
from runtime.postgres.connection import DatabaseSilent
from runtime.process.settings import load_settings
from runtime.process.supervision import TaskSupervisor
from tests.fixtures.fix_backoffice import BackofficeProcess
from tests.fixtures.fix_databases import Databases


def test_readyz_names_a_silent_shard(databases: Databases, redis_client: redis.Redis, tmp_path: Path) -> None:
    """The probe waited for the server's consent to be cancelled: longer than any load balancer waits."""
    first, *others = databases.shard_dsns
    port = urlsplit(first).port
    assert port is not None
    with FaultProxy(port) as proxy:
        environ = {"FLASHSALE_SHARD_DSNS": ",".join([first.replace(f":{port}/", f":{proxy.port}/"), *others])}
        url = f"redis://127.0.0.1:{redis_client.get_connection_kwargs()['port']}/0"
        process = BackofficeProcess(tmp_path, url, databases, environ)
        process.start()
        try:
            proxy.stall(stalled=True)
            answer = httpx.get(f"{process.url}/readyz", timeout=5)  # a probe's usual patience
            assert (answer.status_code, answer.json()["missing"]) == (503, ["shard_0"])
            proxy.stall(stalled=False)
            process.wait_ready()
            assert process.stop() == 0
        finally:
            process.kill()


@contextmanager
def standby_away(dsn: str) -> Iterator[None]:
    """Each COMMIT with a write waits for a standby that does not exist."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        try:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'away'")
            connection.execute("SELECT pg_reload_conf()")
            yield
        finally:
            connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
            connection.execute("SELECT pg_reload_conf()")


async def test_a_commit_without_an_answer_is_not_ready_although_reads_are_answered(
    databases: Databases, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores_module, "_CALL_S_MAX", 0.5)
    monkeypatch.setattr(databases_module, "UNKNOWN_COMMIT_S", 0.5)
    url = f"redis://127.0.0.1:{redis_client.get_connection_kwargs()['port']}/0"
    stores = Stores.from_settings(
        load_settings({**databases.environ, "FLASHSALE_REDIS_URL": url, "FLASHSALE_CACHE_URL": url})
    )
    health = Health(stores, cast(Any, SimpleNamespace(synced=True)), TaskSupervisor())
    health.prepared = True
    call = cast(Call, None)

    async def write() -> None:
        async with stores.catalogue.connection() as connection:
            await connection.execute("SELECT pg_logical_emit_message(true, 'test', 'a write')")

    async with stores.opened(TaskSupervisor()):
        await write()
        await health.ready(call)
        with standby_away(databases.catalogue_dsn):
            async with asyncio.timeout(20):
                while True:  # until the server has read its new setting
                    try:
                        await write()
                    except DatabaseSilent:
                        break
            with pytest.raises(Refused) as refused:
                await health.ready(call)
            assert refused.value.details.extensions["missing"] == ["catalogue"]
        await write()
        await asyncio.sleep(0.6)
        await health.ready(call)
