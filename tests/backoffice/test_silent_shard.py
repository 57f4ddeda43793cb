"""A shard that keeps its connections and answers nothing: the backoffice says so in time, and recovers."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import httpx
import redis

from faults.proxy import FaultProxy
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
