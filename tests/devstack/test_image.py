"""The image of the Dockerfile, built and run: C implementations, no root, nothing to write, an edge that serves."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from devstack.children import free_port
from devstack.servers import RedisServer
from runtime.tokens.keys import create_token_keys
from tests.devstack import image as images
from tests.devstack.image import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
READY_S_MAX = 60.0


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := images.install_tools():
        pytest.skip(reason)
    work = tmp_path_factory.mktemp("image")
    images.make_base(work)
    return work


@pytest.fixture(scope="module")
def image(work: Path) -> Iterator[Image]:
    with images.mounted(images.build("flashsale"), work) as image:
        yield image


def test_the_command_and_every_process_are_there(image: Image) -> None:
    done = image.run("help", "flashsale", "--help")
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in ("migrate", "reconcile", "rebuild", "compose-secrets"))
    programs = "edge.server", "edge.worker", "backoffice.application", "devstack.payment_simulator.__main__"
    done = image.run("imports", "python3", "-c", f"import {', '.join(programs)}")
    assert (done.returncode, done.stderr) == (0, "")


def test_databases_are_reached_by_the_c_implementation(image: Image) -> None:
    done = image.run("psycopg", "python3", "-c", "import psycopg.pq, psycopg_pool; print(psycopg.pq.__impl__)")
    assert (done.stdout, done.stderr) == ("c\n", "")


def test_it_has_no_rights_and_nothing_to_write(image: Image) -> None:
    assert image.config["User"] == "10001:10001"
    probe = "id -u; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status; for f in / /opt/flashsale /tmp; do touch $f/x; done"
    done = image.run("rights", "sh", "-c", probe)
    lines = done.stdout.split()
    assert lines == ["10001", "CapEff:", "0" * 16, "CapBnd:", "0" * 16, "NoNewPrivs:", "1"]
    assert done.stderr.count("Read-only file system") == 2, done.stderr  # all but /tmp
    done = image.run("tools", "sh", "-c", "command -v gcc pip cython; find / -xdev -perm -4000 -newer /opt/flashsale")
    assert done.stdout == ""


def test_an_edge_serves_and_drains(image: Image, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    keys = tmp_path / "keys" / "token-keys"
    keys.parent.mkdir()
    create_token_keys(keys)
    keys.chmod(0o444)
    server = RedisServer(tmp_path / "redis")
    server.start()
    port = free_port()
    environment = {
        "FLASHSALE_REDIS_URL": server.url, "FLASHSALE_TOKEN_KEYS_FILE": str(keys), "FLASHSALE_EDGE_PORT": str(port),
        "FLASHSALE_EDGE_DIRECT_PORT": str(free_port()),
    }  # fmt: skip
    argv = image.argv("edge", image.config["Cmd"], environment, binds=[keys])
    log = (tmp_path / "edge.log").open("w+")
    process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)
    try:
        assert ready(port), Path(log.name).read_text()
        probed = image.run("probe", "ready", str(port))
        assert (probed.returncode, probed.stderr) == (0, "")
        assert httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 200
        server.stop()
        assert ready(port, status=503)
        assert image.run("probe-of-none", "ready", str(port)).returncode == 1
        process.terminate()  # runc passes the signal on
        assert process.wait(60) == 0, Path(log.name).read_text()
    finally:
        if process.poll() is None:
            process.kill()
        server.destroy()
        log.close()


def ready(port: int, *, status: int = 200) -> bool:
    deadline = time.monotonic() + READY_S_MAX
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == status:
                return True
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    return False


def test_the_demo_has_a_mailbox(work: Path) -> None:
    with images.mounted(images.build("demo"), work) as demo:
        done = demo.run("mailbox", "python3", "-c", "import devstack.mailbox, aiosmtpd")
        assert (done.returncode, done.stderr) == (0, "")


def test_the_pooler_reads_its_configuration(work: Path) -> None:
    with images.mounted(images.build("pooler"), work) as pooler:
        assert pooler.config["User"] == "10001:10001"
        done = pooler.run("pooler", "timeout", "3", "pooler", UPSTREAM="127.0.0.1")
        assert "process up: PgBouncer 1.18" in done.stderr, done.stderr
        errors = [line for line in done.stderr.splitlines() if re.search(r"\b(ERROR|WARNING|FATAL)\b", line)]
        assert len(errors) == 1 and "/run/secrets/pooler_users" in errors[0], errors  # it has no secrets here
