"""The Redis scripts: reads them from the package, puts shared fragments in, runs them.

Knows nothing of what the scripts mean: `docs/redis-layout.md` and each script's header say that. Works from a source
tree, an installed package and a one-file executable (data files of the package are read by `importlib.resources`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import NoScriptError

_INCLUDE = re.compile(r"^--- @include ([a-z_]+)$", re.MULTILINE)
_NAME = re.compile(r"[a-z]+-([0-9]+)(?:-([0-9]+)n)?")

_NAMES = {
    "RESERVE": "reserve-2-2n",
    "LOOKUP": "lookup-2-2n",
    "CANCEL": "cancel-4",
    "SETTLE": "settle-4",
    "EXPIRE": "expire-4",
    "REJECT": "reject-4",
    "LOAD": "load-1",
    "DEFINE": "define-1",
    "RESTOCK": "restock-2",
    "FORGET": "forget-1",
    "TRIM": "trim-2",
    "CLOSE": "close-2",
    "RESTORE": "restore-2-1n",
    "REOPEN": "reopen-3",
}
SCRIPT_NAMES = tuple(_NAMES.values())

if TYPE_CHECKING:  # at run time read on first use, by __getattr__
    RESERVE: Script
    LOOKUP: Script
    CANCEL: Script
    SETTLE: Script
    EXPIRE: Script
    REJECT: Script
    LOAD: Script
    DEFINE: Script
    RESTOCK: Script
    FORGET: Script
    TRIM: Script
    CLOSE: Script
    RESTORE: Script
    REOPEN: Script


class ScriptError(Exception):
    """A script or fragment is not there, or its includes do not end; the message names it."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script ready for Redis: whole source, its SHA-1 in hex, and how many keys it takes.

    A batch script takes `key_count + keys_per_request * n` keys for n requests; the others take `key_count`.
    """

    name: str
    source: str
    sha: str
    key_count: int
    keys_per_request: int = 0


class RedisCommands(Protocol):
    """What `run` needs of a client: `redis.asyncio.Redis` has it."""

    def execute_command(self, *args: Any) -> Awaitable[Any]:
        """Send one command and wait for its answer."""
        ...


async def run(
    redis: RedisCommands, script: Script, keys: Sequence[bytes | str], args: Sequence[bytes | str | int]
) -> Any:
    """Run a script by its hash and return its answer; a server that does not know it yet is given the source, once.

    Raises `redis.exceptions.ResponseError` for an error reply (`CORRUPT ...`, `MALFORMED ...`), nothing written then.
    """
    try:
        return await redis.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
    except NoScriptError:
        # The script cache empties on restart and failover.
        await redis.execute_command("SCRIPT LOAD", script.source)
    return await redis.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)


@cache
def load_script(name: str) -> Script:
    """The script in `hotpath/lua/<name>.lua` with its fragments; read once. ScriptError for an unknown name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ScriptError(f"not a script name: {name!r}")
    source = read_source(files("hotpath") / "lua", name)
    return Script(
        name=name,
        source=source,
        sha=hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest(),
        key_count=int(match[1]),
        keys_per_request=int(match[2] or 0),
    )


def read_source(folder: Traversable, name: str) -> str:
    """The text of `<name>.lua` in a folder with each `--- @include NAME` line replaced by `shared/NAME.lua`.

    Raises ScriptError for a missing file, for a fragment that includes itself and for one that is put in twice
    (its locals would hide the first ones).
    """
    seen: set[str] = set()

    def expand(text: str, path: tuple[str, ...]) -> str:
        def put_in(match: re.Match[str]) -> str:
            fragment = match[1]
            if fragment in path:
                raise ScriptError(f"{name}: include cycle {' -> '.join((*path, fragment))}")
            if fragment in seen:
                raise ScriptError(f"{name}: {fragment} is included twice")
            seen.add(fragment)
            return expand(_read(folder / "shared" / f"{fragment}.lua").rstrip("\n"), (*path, fragment))

        return _INCLUDE.sub(put_in, text)

    return expand(_read(folder / f"{name}.lua"), ())


def _read(file: Traversable) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ScriptError(f"there is no {file.name}") from None


if not TYPE_CHECKING:  # a type checker knows the names above and refuses any other

    def __getattr__(name: str) -> Script:
        if name in _NAMES:
            return load_script(_NAMES[name])
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
