"""Loader and runner of the Lua scripts in `runtime/lua/`: one operation a file, the number of keys in its name (n: any).

Does not know the order path's scripts; `hotpath.scripts` does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

Argument = bytes | str | int


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text, its SHA-1 in hex, and how many of its arguments are keys (None: as many as there are)."""

    name: str
    source: str
    sha: str
    key_count: int | None


@cache
def load_script(name: str) -> Script:
    """Script `name`, such as `lease_acquire-2`; its key count is the number behind the last hyphen."""
    source = (resources.files("runtime") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    keys = name.rpartition("-")[2]
    return Script(name, source, sha, None if keys == "n" else int(keys))


async def run(redis: Redis, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
    """EVALSHA; when the server does not know the script (restart, failover), EVAL, which also caches it."""
    assert len(keys) == script.key_count or (script.key_count is None and keys), script.name
    try:
        return await redis.evalsha(script.sha, len(keys), *keys, *args)
    except NoScriptError:
        # Nothing ran: NOSCRIPT is answered before the first line of the script.
        return await redis.eval(script.source, len(keys), *keys, *args)
