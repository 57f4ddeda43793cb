"""Start and stop of the process: SIGTERM loses no request, a port in use is an error, absent servers are awaited."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis

from devstack.servers import RedisServer, free_port
from domain.topology import FINGERPRINT_KEY
from tests.fixtures.fix_backoffice import ADMIN_EMAIL, ADMIN_PASSWORD, BackofficeProcess
from tests.fixtures.fix_databases import Databases


@pytest.fixture
def own(
    tmp_path: Path, redis_server: RedisServer, redis_client: redis.Redis, databases: Databases
) -> Iterator[BackofficeProcess]:
    """A process for one test, not started yet."""
    assert redis_client
    process = BackofficeProcess(tmp_path, redis_server.url, databases)
    yield process
    process.kill()


def login(url: str) -> dict[str, str]:
    answer = httpx.post(url + "/v1/auth/login", json={"email": ADMIN_EMAIL, "password": ADMIN_PASSWORD}, timeout=10)
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


def test_first_administrator_is_made_once(own: BackofficeProcess) -> None:
    own.start()
    login(own.url)
    assert own.stop() == 0
    own.environ["FLASHSALE_ADMIN_PASSWORD"] = "another password"
    own.start()
    login(own.url)  # the account is unchanged
    assert own.stop() == 0
    assert ADMIN_PASSWORD not in own.log
    assert "another password" not in own.log


def test_sigterm_lets_a_request_finish(own: BackofficeProcess, databases: Databases) -> None:
    own.start()
    headers = login(own.url)
    product = {"sku": "SKU-1", "name": "x", "price_minor": 1, "currency": "EUR"}
    answers: list[httpx.Response] = []

    def create() -> None:
        answers.append(httpx.post(own.url + "/v1/products", json=product, headers=headers, timeout=15))

    idle = socket.create_connection(("127.0.0.1", own.port), timeout=10)
    with psycopg.connect(databases.catalogue_dsn) as connection:
        connection.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE")
        thread = threading.Thread(target=create)
        thread.start()
        _until(lambda: _waiting_for_a_lock(databases))
        assert own.process is not None
        own.process.send_signal(signal.SIGTERM)
        _until(lambda: not _accepts(own.port))
        assert own.process.poll() is None
    thread.join()
    assert answers[0].status_code == 201
    assert answers[0].headers["connection"] == "close"
    assert own.process.wait(15) == 0
    assert idle.recv(1) == b""
    with psycopg.connect(databases.catalogue_dsn) as connection:
        assert connection.execute("SELECT count(*) FROM products").fetchone() == (1,)


def test_sigterm_does_not_wait_for_ever(own: BackofficeProcess, databases: Databases) -> None:
    own.environ["FLASHSALE_DRAIN_MS"] = "300"
    own.start()
    headers = login(own.url)
    with psycopg.connect(databases.catalogue_dsn) as connection:
        connection.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE")
        with socket.create_connection(("127.0.0.1", own.port), timeout=10) as sock:
            lines = [f"{name}: {value}" for name, value in headers.items()]
            sock.sendall(("GET /v1/products HTTP/1.1\r\nHost: x\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode())
            _until(lambda: _waiting_for_a_lock(databases))
            assert own.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_clean_end_right_after_start(own: BackofficeProcess, number: signal.Signals) -> None:
    for _ in range(2):
        own.start(wait=False)
        assert own.process is not None
        _until(lambda: _accepts(own.port))
        own.process.send_signal(number)
        assert own.process.wait(15) == 0


def test_a_port_in_use_is_an_error_without_a_prompt(own: BackofficeProcess) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", own.port))
        taken.listen()
        own.start(wait=False)
        assert own.process is not None
        assert own.process.wait(15) == 1
    assert "cannot listen" in own.log


def test_robyns_own_environment_changes_nothing(own: BackofficeProcess) -> None:
    own.environ |= {"ROBYN_HOST": "192.0.2.1", "ROBYN_PORT": "1", "ROBYN_BROWSER_OPEN": "1", "ROBYN_DEV_MODE": "false"}
    own.start()
    assert own.stop() == 0


def test_the_private_port_admits_no_other_client(own: BackofficeProcess) -> None:
    own.start()
    (private,) = _listening_ports(own) - {own.port}
    for headers in ({}, {"X-Flashsale-Client": ":127.0.0.1"}, {"X-Flashsale-Client": "guess:127.0.0.1"}):
        answer = httpx.get(f"http://127.0.0.1:{private}/livez", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"FLASHSALE_TOKEN_KEYS_FILE": "/nonexistent"}, "/nonexistent"),
        ({"FLASHSALE_STAFF_KEY_FILE": "/nonexistent"}, "/nonexistent"),
        ({"FLASHSALE_SHARD_DSNS": "postgresql://x"}, "FLASHSALE_SHARD_DSNS"),
        ({"FLASHSALE_BACKOFFICE_PORT": "high"}, "FLASHSALE_BACKOFFICE_PORT"),
    ],
)
def test_settings_that_cannot_work(own: BackofficeProcess, changed: dict[str, str], named: str) -> None:
    own.environ |= changed
    own.start(wait=False)
    assert own.process is not None
    assert own.process.wait(15) == 2
    assert named in own.log
    assert "Traceback" not in own.log


def test_another_clusters_redis_is_refused(own: BackofficeProcess, redis_client: redis.Redis) -> None:
    redis_client.set(FINGERPRINT_KEY, "0123456789abcdef")
    own.start(wait=False)
    assert own.process is not None
    assert own.process.wait(15) == 1
    assert "0123456789abcdef" in own.log


def test_redis_that_is_away_is_waited_for(own: BackofficeProcess, tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "late", port=free_port())
    own.redis_url = server.url
    own.start(wait=False)
    assert own.process is not None
    _until(lambda: "waiting for Redis" in own.log)
    assert own.stop() == 0  # also while the start waits for servers
    own.start(wait=False)
    try:
        server.start()
        own.wait_ready()
        server.kill()
        answer = httpx.get(own.url + "/readyz", timeout=10)
        assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")
        # Ended sessions are read from this Redis, too; the process detects the loss a moment later.
        assert [name for name in answer.json()["missing"] if name != "sessions"] == ["redis", "cache"]
        headers = {"Content-Type": "application/json"}
        body = f'{{"email": "{ADMIN_EMAIL}", "password": "{ADMIN_PASSWORD}"}}'
        answer = httpx.post(own.url + "/v1/auth/login", content=body, headers=headers, timeout=15)
        assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")
        assert "retry-after" in answer.headers
        assert httpx.get(own.url + "/livez").status_code == 200
        server.start()
        own.wait_ready()  # recovers without intervention
        login(own.url)
    finally:
        own.kill()
        server.stop()


def test_without_the_cache_redis_only_limited_operations_are_refused(own: BackofficeProcess, tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "cache", port=free_port())
    own.environ["FLASHSALE_CACHE_URL"] = server.url
    server.start()
    try:
        own.start()
        headers = login(own.url)
        assert httpx.get(own.url + "/readyz", timeout=10).json() == {"status": "ready", "missing": []}
        server.kill()
        # All processes share the cache Redis, so its loss must not take any of them out of service.
        answer = httpx.get(own.url + "/readyz", timeout=10)
        assert (answer.status_code, answer.json()) == (200, {"status": "degraded", "missing": ["cache"]})
        product = {"sku": "SKU-1", "name": "x", "price_minor": 1, "currency": "EUR"}
        assert httpx.post(own.url + "/v1/products", json=product, headers=headers, timeout=15).status_code == 201
        assert len(httpx.get(own.url + "/v1/products", timeout=15).json()["items"]) == 1
        assert httpx.get(own.url + "/v1/users/me", headers=headers, timeout=15).json()["email"] == ADMIN_EMAIL
        # Attempts could not be counted, so the login is refused.
        body = {"email": ADMIN_EMAIL, "password": ADMIN_PASSWORD}
        answer = httpx.post(own.url + "/v1/auth/login", json=body, timeout=15)
        assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")
        assert "retry-after" in answer.headers
        server.start()
        _until(lambda: httpx.get(own.url + "/readyz", timeout=10).json()["status"] == "ready")
        login(own.url)
    finally:
        own.kill()
        server.stop()


def test_databases_that_are_away_are_waited_for(own: BackofficeProcess) -> None:
    own.environ["FLASHSALE_CATALOGUE_DSN"] = f"postgresql://nobody@127.0.0.1:{free_port()}/nothing"
    own.start(wait=False)
    _until(lambda: _accepts(own.port))
    answer = httpx.get(own.url + "/readyz", timeout=10)
    assert answer.status_code == 503
    assert "catalogue" in answer.json()["missing"]
    answer = httpx.get(own.url + "/v1/products", timeout=20)
    assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")
    assert own.stop() == 0
    assert "nobody" not in answer.text


def _waiting_for_a_lock(databases: Databases) -> bool:
    with psycopg.connect(databases.catalogue_dsn) as connection:
        return bool(connection.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone())


def _accepts(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.02)


def _listening_ports(process: BackofficeProcess) -> set[int]:
    assert process.process is not None
    folder = Path(f"/proc/{process.process.pid}")
    inodes = set()
    for link in (folder / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since the list was made
            inodes.add(os.readlink(link)[8:-1])
    rows = [line.split() for line in (folder / "net" / "tcp").read_text().splitlines()[1:]]
    return {int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and row[9] in inodes}
