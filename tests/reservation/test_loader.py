"""The scripts' loader and runner."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import redis
import redis.asyncio
from redis.exceptions import NoScriptError, ResponseError

from devstack.servers import RedisServer
from domain import topology
from reservation import scripts
from reservation.scripts import PACKAGE
from runtime.redis.scripts import ScriptError, load_script, read_source, run
from tests.reservation.lane import ALL_SCRIPTS


def test_every_file_is_known_and_whole() -> None:
    folder = Path(scripts.__file__).parent / "lua"
    assert {file.stem for file in folder.glob("*.lua")} == {script.name for script in ALL_SCRIPTS}
    fragments = {file.stem: file.read_text().splitlines()[0] for file in (folder / "shared").glob("*.lua")}
    used: set[str] = set()
    for script in ALL_SCRIPTS:
        assert script.source.startswith("#!lua")
        assert "@include" not in script.source
        assert script.sha == hashlib.sha1(script.source.encode(), usedforsecurity=False).hexdigest()
        used |= {name for name, first_line in fragments.items() if first_line in script.source}
    assert used == set(fragments), "no fragment lies idle"


def test_key_counts_come_from_names() -> None:
    assert (scripts.RESERVE.key_count, scripts.RESERVE.keys_per_request) == (2, 2)
    assert (scripts.CANCEL.key_count, scripts.CANCEL.keys_per_request) == (4, 0)
    assert scripts.TRIM is load_script(PACKAGE, "trim-2")


@pytest.mark.parametrize("name", ["reserve", "reserve-3", "../scripts-1", "shared/batch", ""])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ScriptError):
        load_script(PACKAGE, name)


def write_scripts(folder: Path, **fragments: str) -> Path:
    (folder / "shared").mkdir()
    (folder / "main-1.lua").write_text("#!lua\n--- @include a\nreturn 1\n")
    for name, text in fragments.items():
        (folder / "shared" / f"{name}.lua").write_text(text)
    return folder


def test_fragments_are_put_in_also_from_fragments(tmp_path: Path) -> None:
    folder = write_scripts(tmp_path, a="-- a\n--- @include b\n", b="-- b\n")
    assert read_source(folder, "main-1") == "#!lua\n-- a\n-- b\nreturn 1\n"


def test_include_cycles_are_refused(tmp_path: Path) -> None:
    folder = write_scripts(tmp_path, a="--- @include b\n", b="--- @include a\n")
    with pytest.raises(ScriptError, match="a -> b -> a"):
        read_source(folder, "main-1")


def test_a_fragment_put_in_twice_is_refused(tmp_path: Path) -> None:
    folder = write_scripts(tmp_path, a="--- @include b\n--- @include c\n", b="--- @include c\n", c="local c\n")
    with pytest.raises(ScriptError, match="c is included twice"):
        read_source(folder, "main-1")


def test_a_missing_fragment_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"a\.lua"):
        read_source(write_scripts(tmp_path), "main-1")


def test_scripts_are_read_from_an_archive(tmp_path: Path) -> None:
    """As in a one-file executable: the package is not a folder."""
    root = Path(scripts.__file__).parents[1]
    archive = tmp_path / "app.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for package in (root / "reservation", root / "runtime"):
            for file in (*package.glob("**/*.py"), *package.glob("**/*.lua")):
                target.write(file, file.relative_to(root))
    code = "import reservation.scripts as s; assert 'app.zip' in s.__file__, s.__file__; print(s.RESERVE.sha)"
    answer = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(archive)}, cwd=tmp_path, capture_output=True, check=True
    )
    assert answer.stdout.decode().strip() == scripts.RESERVE.sha


async def test_run_loads_a_script_that_the_server_forgot(
    script_redis: redis.Redis, script_redis_server: RedisServer
) -> None:
    async with redis.asyncio.Redis(port=script_redis_server.port) as client:
        for _ in range(2):
            script_redis.script_flush()
            with pytest.raises(NoScriptError):
                script_redis.evalsha(scripts.FORGET.sha, 1, topology.lane_state_key(0), "A" * 22)
            assert await run(client, scripts.FORGET, [topology.lane_state_key(0)], ["A" * 22]) == 0
        assert script_redis.evalsha(scripts.FORGET.sha, 1, topology.lane_state_key(0), "A" * 22) == 0


async def test_run_passes_error_replies_on(script_redis_server: RedisServer) -> None:
    async with redis.asyncio.Redis(port=script_redis_server.port) as client:
        with pytest.raises(ResponseError, match=r"^MALFORMED definition"):
            await run(client, scripts.DEFINE, [topology.lane_state_key(0)], ["A" * 22, b"short"])
