"""Rotating keys while clients log in and order: no request is refused; a rotation continues after a crash."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
import redis
from typer.testing import CliRunner

from devstack.servers import RedisServer
from devstack.state import StateFolder
from ops import key_rotation
from ops.cli import app
from ops.key_rotation import RotationWaits, buyer_kind, plan, rotate, staff_kind
from runtime.tokens.key_files import TokenKeysError
from runtime.tokens.keys import (
    create_staff_key,
    create_token_keys,
    load_staff_keys,
    load_token_keys,
    mint_buyer_token,
    mint_staff_token,
)
from tests.fixtures.fix_backoffice import BackofficeProcess
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_edge import EdgeProcess, Publisher
from tests.fixtures.fix_stack import flashsale

ONE = {"items": [{"sku": "SKU-1", "quantity": 1}]}
PASSWORD = "a long enough password"


def silent(_: str) -> None:
    """Discard progress messages."""


def kid_of(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


class RepeatedRequests:
    """Threads that each repeat one request and count its answers."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.faults: list[str] = []
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def repeat(self, name: str, act: Callable[[], httpx.Response], good: int) -> None:
        def work() -> None:
            while not self._over.wait(0.02):
                answer = act()
                self.seen[name] += 1
                if answer.status_code != good:
                    self.faults.append(f"{name}: {answer.status_code} {answer.text}")

        self._threads.append(threading.Thread(target=work))
        self._threads[-1].start()

    def wait(self, more: int) -> None:
        """Return when each thread has made `more` further requests."""
        wanted = {name: count + more for name, count in self.seen.items()}
        deadline = time.monotonic() + 60
        while any(self.seen[name] < count for name, count in wanted.items()):
            assert time.monotonic() < deadline, self.seen
            time.sleep(0.05)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_no_request_is_refused_while_keys_rotate(
    databases: Databases, own_redis: RedisServer, own_edge: Callable[..., EdgeProcess], tmp_path: Path
) -> None:
    backoffice = BackofficeProcess(tmp_path, own_redis.url, databases)
    backoffice.start()
    try:
        edge = own_edge(redis_url=own_redis.url, token_keys_file=str(backoffice.token_keys_file), edge_workers="2")
        with redis.Redis(port=own_redis.port) as client:
            path = f"/v1/sales/{Publisher(client).publish(stock=100_000).sale_id}/orders"
        staff_before = load_staff_keys(backoffice.staff_key_file)
        admin = mint_staff_token(staff_before.signing, user_id=UUID(int=1), role="admin", issuer="flashsale", ttl_s=900)
        account = {"email": "buyer@example.com", "password": PASSWORD, "name": "A buyer"}
        assert httpx.post(f"{backoffice.url}/v1/auth/register", json=account).status_code == 201
        login = {"email": account["email"], "password": PASSWORD}
        old = httpx.post(f"{backoffice.url}/v1/auth/login", json=login).json()
        refreshing = {"tokens": old}

        def order(token: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": uuid4().hex}
            answer = httpx.post(edge.url + path, headers=headers, json=ONE)
            # The user's rate limit is not under test.
            return httpx.Response(202) if answer.status_code == 429 else answer

        def refresh_and_order() -> httpx.Response:
            body = {"refresh_token": refreshing["tokens"]["refresh_token"]}
            answer = httpx.post(f"{backoffice.url}/v1/auth/refresh", json=body)
            if answer.status_code != 200:
                return answer
            refreshing["tokens"] = answer.json()
            return order(refreshing["tokens"]["access_token"])

        def look_at_sales() -> httpx.Response:
            return httpx.get(f"{backoffice.url}/v1/sales", headers={"Authorization": f"Bearer {admin}"})

        requests = RepeatedRequests()
        requests.repeat("old token", lambda: order(old["access_token"]), 202)
        requests.repeat("fresh tokens", refresh_and_order, 202)
        requests.repeat("staff", look_at_sales, 200)
        processes = {"edge": edge.url, "backoffice": backoffice.url, "relay-0": "http://127.0.0.1:9"}
        try:
            requests.wait(5)
            buyer = rotate(buyer_kind(backoffice.token_keys_file), processes, retire=False, wait_s_max=60, say=silent)
            staff = rotate(staff_kind(backoffice.staff_key_file), processes, retire=False, wait_s_max=60, say=silent)
            requests.wait(5)
        finally:
            requests.end()
        assert requests.faults == []
        assert buyer["processes"] == ["backoffice", "edge"] and staff["processes"] == ["backoffice"]
        assert kid_of(old["access_token"]) == buyer["previous"]
        assert kid_of(refreshing["tokens"]["access_token"]) == buyer["active"]
        published = httpx.get(f"{backoffice.url}/.well-known/jwks.json").json()["keys"]
        assert {key["kid"] for key in published} == {staff["previous"], staff["active"]}
        assert all("d" not in key for key in published)
        metrics = httpx.get(f"{edge.url}/metrics").text + httpx.get(f"{backoffice.url}/metrics").text
        assert not any(key.hex() in metrics for key in load_token_keys(backoffice.token_keys_file).keys.values())

        # A key leaked: all old keys are revoked now.
        rotate(buyer_kind(backoffice.token_keys_file), processes, retire=True, wait_s_max=60, say=silent)
        rotate(staff_kind(backoffice.staff_key_file), processes, retire=True, wait_s_max=60, say=silent)
        assert order(old["access_token"]).json()["code"] == "token_invalid"
        assert look_at_sales().json()["code"] == "token_invalid"
        assert refresh_and_order().status_code == 202
        assert len(load_token_keys(backoffice.token_keys_file).keys) == 1
    finally:
        assert backoffice.stop() == 0
        backoffice.kill()


class _Crash(Exception):
    pass


@pytest.mark.parametrize("retire", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_crash_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, after: bool, retire: bool
) -> None:
    """A crash before or after a step replaces the file: tokens stay valid, and another run completes the rotation."""
    path = tmp_path / "ring.json"
    create_token_keys(path)
    kind, before = buyer_kind(path), load_token_keys(path)
    token = mint_buyer_token(before, user_id=uuid4(), issuer="flashsale", ttl_s=900)
    replace, calls = key_rotation.replace_key_file, 0

    def crashing(path: Path, content: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == step and not after:
            raise _Crash
        replace(path, content)
        if calls == step:
            raise _Crash

    monkeypatch.setattr(key_rotation, "replace_key_file", crashing)
    crashes = step <= (3 if retire else 2)
    if crashes:
        with pytest.raises(_Crash):
            rotate(kind, {}, retire=retire, wait_s_max=1, say=silent)
    else:
        rotate(kind, {}, retire=retire, wait_s_max=1, say=silent)
    left = load_token_keys(path)
    if not (retire and step == 3 and after):
        jwt.decode(token, left.keys[kid_of(token)], algorithms=["HS256"], audience="edge")
    monkeypatch.setattr(key_rotation, "replace_key_file", replace)
    done = rotate(kind, {}, retire=retire, wait_s_max=1, say=silent)
    keys = load_token_keys(path)
    assert keys.active == done["active"] and before.active != keys.active
    assert (kid_of(token) in keys.keys) is not retire
    assert plan(kind, retire=False)["pending"] is None


def test_a_process_that_does_not_follow_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "ring.json"
    create_token_keys(path)
    before = load_token_keys(path)
    with pytest.raises(RotationWaits, match="edge-7"):
        rotate(buyer_kind(path), {"edge-7": "http://127.0.0.1:9"}, retire=False, wait_s_max=0.3, say=silent)
    pending = plan(buyer_kind(path), retire=False)["pending"]
    assert load_token_keys(path).active == before.active and pending is not None
    # The pending key becomes active; no further key is generated.
    assert rotate(buyer_kind(path), {}, retire=False, wait_s_max=1, say=silent)["active"] == pending


def test_one_rotation_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "ring.json"
    create_token_keys(path)
    with key_rotation._alone(path), pytest.raises(TokenKeysError, match="another rotation"):
        rotate(buyer_kind(path), {}, retire=False, wait_s_max=1, say=silent)


@pytest.mark.parametrize(
    "named",
    [
        ("edge=127.0.0.1:1", "backoffice=http://127.0.0.1:1"),
        ("edge=http://127.0.0.1:1", "backoffice"),
        ("edge=http://127.0.0.1:1", "backoffice=http://127.0.0.1:1", "relay-0=http://127.0.0.1:1"),
        ("edge=http://127.0.0.1:1",),
        ("backoffice=http://127.0.0.1:1",),
        (),
    ],
)
def test_no_key_changes_while_a_process_is_not_named(tmp_path: Path, named: tuple[str, ...]) -> None:
    buyer, staff = tmp_path / "buyer.json", tmp_path / "staff.pem"
    create_token_keys(buyer)
    create_staff_key(staff)
    before = buyer.read_bytes(), staff.read_bytes()
    processes = [argument for process in named for argument in ("--process", process)]
    arguments = ["--token-keys", str(buyer), "--staff-key", str(staff), "--wait-s", "1", *processes]
    done = CliRunner().invoke(app, ["rotate-keys", *arguments])
    assert done.exit_code == 2 and "--process" in done.output
    assert (buyer.read_bytes(), staff.read_bytes()) == before


def test_the_command(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "stack")
    done = flashsale(folder, "rotate-keys", check=False)
    assert done.returncode == 1 and "flashsale up" in done.stderr
    folder.make()
    create_token_keys(folder.token_keys)
    create_staff_key(folder.staff_key)
    before = load_token_keys(folder.token_keys), load_staff_keys(folder.staff_key)
    planned = json.loads(flashsale(folder, "rotate-keys", "--dry-run", "--json").stdout)
    assert [planned[name]["active"] for name in ("buyer", "staff")] == [ring.active for ring in before]
    assert load_token_keys(folder.token_keys) == before[0]
    first = flashsale(folder, "rotate-keys", "--json")
    assert "not recorded in the audit log" in first.stderr  # the stack is down, and its catalogue with it
    done_first = json.loads(first.stdout)
    assert done_first["buyer"]["previous"] == before[0].active
    assert done_first["staff"]["previous"] == before[1].active
    assert done_first["buyer"]["previous_ends_at"] > time.time() + 86_000
    # A second run is another rotation; tokens from before the first one stay valid.
    text = flashsale(folder, "rotate-keys").stdout
    assert done_first["buyer"]["active"] in text and "no running process" in text
    assert set(load_token_keys(folder.token_keys).keys) > {before[0].active, done_first["buyer"]["active"]}
    assert "is gone" in flashsale(folder, "rotate-keys", "--retire").stdout
    assert len(load_token_keys(folder.token_keys).keys) == len(load_staff_keys(folder.staff_key).keys) == 1
