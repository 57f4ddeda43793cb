"""Loader and runner of Lua scripts: one operation a file, the number of keys in the file's name.

    lease_acquire-2    two keys
    reserve-2-2n       two keys, then two for each request of a batch
    attempts_spend-n   any number of keys, at least one

A line `--- @include NAME` is replaced by `shared/NAME.lua` of the same folder. Package data is read through
`importlib.resources`, so source trees, installed packages and one-file executables work alike. The meaning of a script
is in its header and its caller, not here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

Argument = bytes | str | int
Call = tuple[Sequence[bytes | str], Sequence[Argument]]  # KEYS and ARGV of one call

_INCLUDE = re.compile(r"^--- @include ([a-z_]+)$", re.MULTILINE)
_NAME = re.compile(r"[a-z_]+-(?:([0-9]+)(?:-([0-9]+)n)?|n)")


class ScriptError(Exception):
    """A script or fragment does not exist, or an include is wrong; the message names the file."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script ready for Redis: its source with all fragments, the SHA-1 of the source in hex, and its key counts.

    A script takes `key_count + keys_per_request * n` keys for n requests. `key_count` is None for any number of keys.
    """

    name: str
    source: str
    sha: str
    key_count: int | None
    keys_per_request: int = 0

    def takes(self, keys: int) -> bool:
        """Whether the script may be called with this number of keys."""
        if self.key_count is None:
            return keys > 0
        if not self.keys_per_request:
            return keys == self.key_count
        return keys > self.key_count and (keys - self.key_count) % self.keys_per_request == 0


class RedisCommands(Protocol):
    """The part of a client that `run` uses; `redis.asyncio.Redis` has it."""

    def execute_command(self, *args: Any) -> Awaitable[Any]:
        """Send one command and wait for its answer."""
        ...


async def run(redis: RedisCommands, script: Script, keys: Sequence[bytes | str], args: Sequence[Argument]) -> Any:
    """Run a script by its hash and return its answer; load the source first if the server does not know the script.

    Raises `redis.exceptions.ResponseError` for an error reply of the script (`CORRUPT ...`, `MALFORMED ...`); the
    script wrote nothing then.
    """
    assert script.takes(len(keys)), script.name
    try:
        return await redis.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
    except NoScriptError:
        # Restart and failover empty the script cache. Redis answers NOSCRIPT before the first line of the script.
        await redis.execute_command("SCRIPT LOAD", script.source)
    return await redis.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)


async def run_many(redis: Redis, script: Script, calls: Sequence[Call], *, lost_in_place: bool = False) -> list[Any]:
    """Run a script for many calls in one round trip; an error reply (`ResponseError`) stands in its call's place.

    Calls that the server answered with NOSCRIPT are sent again after the source was loaded. Raises RedisError when the
    answers did not arrive: any of the calls may have been executed. With `lost_in_place` the error of a lost node of a
    cluster stands in its calls' places instead, so that the answers of the other nodes count.
    """
    answers = await _send_many(redis, script, calls)
    missed = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
    if missed:
        await redis.script_load(script.source)
        again = await _send_many(redis, script, [calls[place] for place in missed])
        for place, answer in zip(missed, again, strict=True):
            answers[place] = answer
    for answer in answers:
        if isinstance(answer, Exception) and not isinstance(answer, ResponseError) and not lost_in_place:
            raise answer
    return answers


async def _send_many(redis: Redis, script: Script, calls: Sequence[Call]) -> list[Any]:
    pipeline: Any = redis.pipeline(transaction=False)
    for keys, args in calls:
        assert script.takes(len(keys)), script.name
        pipeline.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
    answers: list[Any] = await pipeline.execute(raise_on_error=False)
    return answers


@cache
def load_script(package: str, name: str) -> Script:
    """Script `name` in the folder of `package`, such as `("runtime.redis", "lease_acquire-2")`; read once.

    Raises ScriptError for a malformed name and for a file that does not exist.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ScriptError(f"not a script name: {name!r}")
    source = read_source(files(package), name)
    return Script(
        name=name,
        source=source,
        sha=hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest(),
        key_count=int(match[1]) if match[1] else None,
        keys_per_request=int(match[2] or 0),
    )


def read_source(folder: Traversable, name: str) -> str:
    """Text of `<name>.lua` in a folder, each include replaced by its fragment.

    Raises ScriptError for a missing file, for a fragment that includes itself, and for a fragment included twice: its
    locals would hide those of the first inclusion.
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
