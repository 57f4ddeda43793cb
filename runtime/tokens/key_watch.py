"""Follows a key file while the process runs: a rotation needs no restart. Reads only; `devstack` rotates.

Looks once a second at the file's identity (replaced whole, or behind a link that was moved, as Kubernetes does with a
mounted Secret). A file that cannot be used is told once, and what was read before stays in use: a rotation that went wrong
must not log everybody out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

import structlog

from runtime.tokens.key_files import TokenKeysError, unix_now

PERIOD_S: Final = 1.0

_log = structlog.get_logger(__name__)


class Ring(Protocol):
    """What a file is read into."""

    @property
    def active(self) -> str:
        """The kid that signs."""
        ...

    @property
    def ends_s(self) -> int | None:
        """Unix seconds at which the next of its keys ends."""
        ...


T = TypeVar("T", bound=Ring)


class KeyWatch(Generic[T]):
    """The newest usable content of a file; `current` is an ordinary attribute, read as often as one likes."""

    def __init__(self, path: Path, load: Callable[[Path], T]) -> None:
        """Reads the file; TokenKeysError when it cannot be used now."""
        self._path = path
        self._load = load
        self._tell: list[Callable[[T], None]] = []
        self._identity = self._look()
        self._fault = ""
        self.current = load(path)

    def on_change(self, tell: Callable[[T], None]) -> None:
        """Have every later content told."""
        self._tell.append(tell)

    async def run(self) -> None:
        """Follow the file for ever. Cancel to stop."""
        while True:
            await asyncio.sleep(PERIOD_S)
            self.step()

    def step(self) -> None:
        """One look; reads the file if it is another one, or if one of its keys has ended."""
        identity = self._look()
        ends_s = self.current.ends_s
        if identity == self._identity and (ends_s is None or unix_now() < ends_s):
            return
        try:
            current = self._load(self._path)
        except TokenKeysError as error:
            if str(error) != self._fault:
                _log.error("key_file_unusable", detail=str(error))
            self._fault = str(error)
            return
        self._identity, self._fault = identity, ""
        if current != self.current:
            _log.info("keys_changed", file=self._path.name, active=current.active)
            self.current = current
            for tell in self._tell:
                tell(current)

    def _look(self) -> tuple[int, ...]:
        try:
            seen = self._path.stat()
        except OSError:
            return ()
        return seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_size
