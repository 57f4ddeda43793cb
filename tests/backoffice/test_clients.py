"""The client that limits count: only trusted proxies set it, and a client cannot pretend to be another one."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import httpx
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from backoffice.limits.attempts import LOGIN_ACCOUNT_FROM_CLIENT
from backoffice.web.admission.proxies import UNTRUSTED, WARN_EVERY_S, UntrustedProxies
from backoffice.web.clients import ENTRIES_MAX, UNKNOWN, client_of
from tests.fixtures.fix_backoffice import BackofficeProcess
from tests.fixtures.fix_databases import Databases

PROXIES = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # not from a trusted proxy: ignored
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),  # the entry that the client sent
        ("10.0.0.1", ["6.6.6.6", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1, 10.9.9.9"], "198.51.100.1"),  # two proxies in a row
        ("10.0.0.1", ["10.2.2.2, 198.51.100.1"], "198.51.100.1"),  # a client that claims to be a proxy
        ("10.0.0.1", ["10.2.2.2"], "10.2.2.2"),
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8:1:2:3::4]:4711"], "2001:db8:1:2::/64"),
        ("10.0.0.1", ["2001:db8:1:2:ffff::1"], "2001:db8:1:2::/64"),
        ("10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("fd00::1", ["198.51.100.1"], "198.51.100.1"),
        ("fe80::1%eth0", [], "fe80::/64"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, _hidden"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, , 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["", ","], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.001"], "10.0.0.1"),
        ("unknown", ["198.51.100.1"], UNKNOWN),
    ],
)
def test_the_counted_client(peer: str, forwarded: list[str], client: str) -> None:
    assert client_of(peer, forwarded, PROXIES) == client


@given(st.lists(st.text(max_size=30), max_size=3))
def test_without_trusted_proxies_nothing_is_believed(forwarded: list[str]) -> None:
    assert client_of("10.0.0.1", forwarded, ()) == "10.0.0.1"


@given(st.lists(st.text(st.characters(max_codepoint=255), max_size=30), max_size=3))
def test_entries_before_the_last_trusted_one_change_nothing(forwarded: list[str]) -> None:
    assert client_of("10.0.0.1", [*forwarded, "198.51.100.1"], PROXIES) == "198.51.100.1"


def test_a_row_of_proxies_without_end_is_cut() -> None:
    row = ["198.51.100.1", *["10.0.0.2"] * (ENTRIES_MAX - 1)]
    assert client_of("10.0.0.1", [", ".join(row)], PROXIES) == "198.51.100.1"
    row.insert(0, "6.6.6.6")
    row += ["10.0.0.2"] * 10
    assert client_of("10.0.0.1", [", ".join(row)], PROXIES) == "10.0.0.2"


def test_a_proxy_that_is_not_trusted_is_noticed_once_a_minute() -> None:
    now = 100.0
    proxies = UntrustedProxies(PROXIES, now=lambda: now)
    before = UNTRUSTED._value.get()
    with capture_logs() as logs:
        for peer in ("10.0.0.1", "8.8.8.8", None, "unknown", "192.168.1.5", "192.168.1.6"):
            proxies.see(peer)
        now += WARN_EVERY_S
        proxies.see("fe80::1%eth0")
    assert UNTRUSTED._value.get() == before + 4
    assert [line["proxy"] for line in logs] == ["192.168.1.5", "fe80::1"]
    assert "FLASHSALE_TRUSTED_PROXIES" in logs[0]["event"]


def test_an_ignored_header_is_counted(backoffice: BackofficeProcess) -> None:
    def ignored() -> float:
        text = httpx.get(f"{backoffice.url}/metrics").text
        return float(text.partition("\nflashsale_backoffice_untrusted_forwards_total ")[2].split()[0])

    before = ignored()
    httpx.get(f"{backoffice.url}/livez", headers={"X-Forwarded-For": "198.51.100.1"})
    assert ignored() == before + 1
    assert "FLASHSALE_TRUSTED_PROXIES" in backoffice.log


def _exhaust(http: httpx.Client, client: str) -> None:
    for _ in range(LOGIN_ACCOUNT_FROM_CLIENT.attempts_max):
        assert _login(http, client) == 401


def _login(http: httpx.Client, client: str) -> int:
    body = {"email": "nobody@shop.example", "password": "guess"}
    return http.post("/v1/auth/login", json=body, headers={"X-Forwarded-For": client}).status_code


def test_without_the_setting_a_spoofed_header_changes_nothing(backoffice: BackofficeProcess) -> None:
    with httpx.Client(base_url=backoffice.url, timeout=20) as http:
        _exhaust(http, "198.51.100.1")
        for spoofed in ("198.51.100.2", "127.0.0.1", "", "x" * 1000):
            assert _login(http, spoofed) == 429


def test_behind_a_trusted_proxy_each_client_is_counted(
    tmp_path: Path, redis_client: redis.Redis, databases: Databases
) -> None:
    port = redis_client.get_connection_kwargs()["port"]
    process = BackofficeProcess(
        tmp_path, f"redis://127.0.0.1:{port}/0", databases, {"FLASHSALE_TRUSTED_PROXIES": "127.0.0.0/8, ::1/128"}
    )
    process.start()
    try:
        with httpx.Client(base_url=process.url, timeout=20) as http:
            _exhaust(http, "198.51.100.1")
            assert _login(http, "198.51.100.1") == 429
            assert _login(http, "6.6.6.6, 198.51.100.1") == 429  # it cannot pretend to be another client
            assert _login(http, "198.51.100.2") == 401
            # A client must not set the private header of admission.
            raw = {"email": "nobody@shop.example", "password": "guess"}
            headers = {"X-Forwarded-For": "198.51.100.1", "X-Flashsale-Client": "x:198.51.100.3"}
            assert http.post("/v1/auth/login", json=raw, headers=headers).status_code == 429
        assert process.stop() == 0
    finally:
        process.kill()
