"""Key files: steps of a rotation, faults, and processes that follow a file."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.process import tasks
from runtime.tokens import key_watch
from runtime.tokens.key_files import KEYS_MAX, KeyRingDocument, TokenKeysError, replace_key_file
from runtime.tokens.key_watch import KeyWatch
from runtime.tokens.keys import (
    create_staff_key,
    create_token_keys,
    load_staff_keys,
    load_token_keys,
    make_staff_key,
    make_token_key,
    read_staff_document,
    staff_jwks,
)

NOW = 1_800_000_000
PATH = Path("ring.json")


def test_the_life_of_a_key() -> None:
    ring = KeyRingDocument("a", {"a": "A"})
    added = ring.with_pending("b", "B")
    assert (added.active, added.pending, dict(added.keys)) == ("a", "b", {"a": "A", "b": "B"})
    assert added.with_pending("c", "C") == added, "one at a time"
    active = added.activated(until=NOW + 100)
    assert (active.active, active.pending, dict(active.until)) == ("b", None, {"a": NOW + 100})
    assert active.activated(until=NOW) == active
    assert active.swept(NOW + 99) == active
    assert active.swept(NOW + 100) == KeyRingDocument("b", {"b": "B"}) == active.retired()
    assert added.retired() == added, "a pending key is not an old one"
    for document in (ring, added, active):
        assert KeyRingDocument.parse(document.dump().decode(), path=PATH) == document


def test_a_ring_is_bounded() -> None:
    full = KeyRingDocument("0", {str(kid): "x" for kid in range(KEYS_MAX)})
    with pytest.raises(TokenKeysError, match="--retire"):
        full.with_pending("new", "y")
    assert full.retired().with_pending("new", "y").pending == "new"


@pytest.mark.parametrize(
    "changes",
    [
        {"pending": "c"}, {"pending": "a"}, {"pending": 7}, {"until": []}, {"until": {"b": "soon"}},
        {"until": {"b": 1.5}}, {"keys": {"a": 1}}, {"keys": []}, {"active": None},
    ],
)  # fmt: skip
def test_malformed_documents(changes: dict[str, Any]) -> None:
    document = {"active": "a", "keys": {"a": "SECRET", "b": "SECRET"}, **changes}
    with pytest.raises(TokenKeysError, match=r"ring\.json") as caught:
        KeyRingDocument.parse(json.dumps(document), path=PATH)
    assert "SECRET" not in str(caught.value)


def test_a_document_that_is_nested_too_deeply_is_malformed() -> None:
    """`json` raises another error for it, which ended the watch of the file."""
    with pytest.raises(TokenKeysError, match="not valid JSON"):
        KeyRingDocument.parse("[" * 100_000, path=PATH)


def test_a_file_is_replaced_atomically_and_stays_private(tmp_path: Path) -> None:
    path = tmp_path / "ring.json"
    create_token_keys(path)
    inode = path.stat().st_ino
    replace_key_file(path, b"new")
    assert path.read_bytes() == b"new" and path.stat().st_ino != inode
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["ring.json"]


def test_a_pem_becomes_a_ring_of_staff_keys(tmp_path: Path) -> None:
    path = tmp_path / "staff.pem"
    create_staff_key(path)
    first = load_staff_keys(path).signing
    document = read_staff_document(path).with_pending(*make_staff_key())
    replace_key_file(path, document.dump())
    keys = load_staff_keys(path)
    assert keys.active == first.kid and set(keys.keys) == {first.kid, document.pending}
    assert keys.signing.private.private_bytes_raw() == first.private.private_bytes_raw()
    assert {key["kid"] for key in staff_jwks(*keys.keys.values())["keys"]} == set(keys.keys)
    wrong = KeyRingDocument("x", {"x": make_staff_key()[1]})
    replace_key_file(path, wrong.dump())
    with pytest.raises(TokenKeysError, match="thumbprint"):
        load_staff_keys(path)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.01)


async def test_a_watch_follows_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_watch, "PERIOD_S", 0.01)
    path = tmp_path / "ring.json"
    create_token_keys(path)
    watch = KeyWatch(path, load_token_keys)
    told: list[str] = []
    watch.on_change(lambda keys: told.append(keys.active))
    old = watch.current
    running = asyncio.create_task(watch.run())
    try:
        kid, key = make_token_key()
        added = KeyRingDocument.parse(path.read_text(), path=path).with_pending(kid, key)
        replace_key_file(path, added.dump())
        await until(lambda: kid in watch.current.keys)
        assert watch.current.active == old.active and old.active in watch.current.keys
        # An unusable or missing file changes nothing.
        known = watch.current
        replace_key_file(path, b"{")
        await asyncio.sleep(0.1)
        path.unlink()
        await asyncio.sleep(0.1)
        assert watch.current is known
        path.write_bytes(added.activated(until=NOW * 2).dump())
        await until(lambda: watch.current.active == kid)
        assert told == [old.active, kid]
    finally:
        await tasks.cancel(running)


async def test_a_key_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ring.json"
    create_token_keys(path)
    document = KeyRingDocument.parse(path.read_text(), path=path).with_pending(*make_token_key())
    replace_key_file(path, document.activated(until=NOW).dump())
    clock = NOW - 1
    for module in ("runtime.tokens.key_watch", "runtime.tokens.keys"):
        monkeypatch.setattr(f"{module}.unix_now", lambda: clock)
    watch = KeyWatch(path, load_token_keys)
    watch.step()
    assert set(watch.current.keys) == {document.active, document.pending}
    clock = NOW
    watch.step()
    assert set(watch.current.keys) == {document.pending} and watch.current.ends_s is None
