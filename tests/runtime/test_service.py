"""The lifecycle of a real process: signals, exit status, probes and log lines."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from devstack.servers import free_port
from runtime.process import probes
from runtime.process.service import Service
from runtime.process.settings import load_settings

ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio, sys
from runtime.process import service

async def obedient(s):
    s.ready("work", ok=True, detail="fine")
    while not await s.pause(60):
        pass

async def failing(s):
    async with asyncio.TaskGroup() as group:
        group.create_task(fail())

async def fail():
    raise RuntimeError("no such thing")

async def stubborn(s):
    s.ready("work", ok=False, detail="never")
    await asyncio.sleep(3600)

service.STOP_EXTRA_S = 0.2
service.run("demo", service.settings_or_exit("demo"), globals()[sys.argv[1]])
"""


@contextmanager
def program(main: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    environ |= {f"FLASHSALE_{name}": value for name, value in settings.items()}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, main], env=environ, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def lines_of(process: subprocess.Popen[bytes]) -> list[dict[str, object]]:
    """The log lines of a process that has ended."""
    _, logged = process.communicate(timeout=20)
    return [json.loads(line) for line in logged.splitlines()]


def request(port: int, method: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def wait_for_checks(port: int) -> None:
    """Return when `main` has registered its condition: it runs, and the signal handlers are installed."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if json.loads(request(port, "GET", "/readyz")[1])["checks"]:
                return
        except OSError:
            pass
        time.sleep(0.02)
    raise AssertionError("the process does not come up")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0(number: signal.Signals) -> None:
    port = free_port()
    with program("obedient", METRICS_PORT=str(port)) as process:
        wait_for_checks(port)
        status, body = request(port, "GET", "/readyz")
        assert (status, json.loads(body)) == (200, {"ready": True, "checks": {"work": {"ok": True, "detail": "fine"}}})
        assert request(port, "GET", "/livez") == (200, b"ok\n")
        assert b"process_resident_memory_bytes" in request(port, "GET", "/metrics?x=y")[1]
        process.send_signal(number)
        lines = lines_of(process)
        assert process.returncode == 0
    assert [line["event"] for line in lines] == ["started", "stopping", "stopped"]
    assert {line["service"] for line in lines} == {"demo"}


def test_an_exception_is_one_fatal_line_and_status_1() -> None:
    with program("failing") as process:
        [_, fatal] = lines_of(process)
        assert process.returncode == 1
    assert fatal["event"] == "fatal"
    assert fatal["error"] == "RuntimeError: no such thing"


def test_work_that_does_not_drain_is_ended_with_status_1() -> None:
    port = free_port()
    with program("stubborn", DRAIN_MS="100", METRICS_PORT=str(port)) as process:
        wait_for_checks(port)
        assert request(port, "GET", "/readyz")[0] == 503
        process.terminate()
        lines = lines_of(process)
        assert process.returncode == 1
    assert str(lines[-1]["error"]).startswith("DrainTimeout")


def test_wrong_settings_are_named_together_without_their_values_and_status_2() -> None:
    with program("obedient", LANES="secret", METRICS_PORT="-1", NO_SUCH="x") as process:
        [line] = lines_of(process)
        assert process.returncode == 2
    assert all(
        name in str(line["error"]) for name in ("FLASHSALE_LANES", "FLASHSALE_METRICS_PORT", "FLASHSALE_NO_SUCH")
    )
    assert "secret" not in str(line)


def test_a_taken_port_is_fatal() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        with program("obedient", METRICS_PORT=str(sock.getsockname()[1])) as process:
            [fatal] = lines_of(process)
            assert process.returncode == 1
        assert "address already in use" in str(fatal["error"]).lower()


async def test_readiness_needs_a_condition_and_ends_with_stopping() -> None:
    service = Service("demo", load_settings({}))
    assert not service.is_ready
    service.ready("redis", ok=True)
    assert service.is_ready
    service.ready("queue", ok=False, detail="away")
    assert not service.is_ready
    service.ready("queue", ok=True)
    assert service.is_ready
    assert await service.pause(0.01) is False
    service.stopping.set()
    assert not service.is_ready
    assert await service.pause(60) is True


async def test_a_condition_of_several_parts_holds_when_it_holds_for_each() -> None:
    service = Service("demo", load_settings({}))
    service.ready("queue", ok=False, detail="full", by="one")
    service.ready("queue", ok=True, by="other")
    assert service.checks == {"queue": (False, "full")}
    service.ready("queue", ok=True, by="one")
    assert service.is_ready


async def exchange(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_the_responder_refuses_what_it_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "REQUEST_S_MAX", 0.3)
    monkeypatch.setattr(probes, "CONNECTIONS_MAX", 3)
    service = Service("demo", load_settings({}))
    running = await probes.start(service, host="127.0.0.1", port=0)
    port = running.port
    assert (await exchange(port, b"GET /none HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
    refused = await exchange(port, b"POST /livez HTTP/1.1\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 405 ")
    assert b"\r\nAllow: GET, HEAD\r\n" in refused
    head = await exchange(port, b"HEAD /livez HTTP/1.1\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert head.endswith(b"\r\n\r\n")
    # Too long, not HTTP, too slow: closed without an answer.
    assert await exchange(port, b"GET /livez HTTP/1.1\r\nX: " + b"x" * 20_000) == b""
    assert await exchange(port, b"\x00\xff") == b""
    # A fourth connection is closed; there is room again after the slow connections have timed out.
    slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    await asyncio.sleep(0.05)
    assert await exchange(port, b"GET /livez HTTP/1.1\r\n\r\n") == b""
    for reader, writer in slow:
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
    assert (await exchange(port, b"GET /livez HTTP/1.1\r\n\r\n")).endswith(b"ok\n")
    await running.stop()
