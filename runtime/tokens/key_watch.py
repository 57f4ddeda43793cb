"""Follows a key file while the process runs, so that a rotation (`ops.key_rotation`) needs no restart.

Compares the identity of the file once a second: it changes when the file is replaced, or when a link to it moves, as in
a mounted Secret of Kubernetes. An unusable file is logged once, and the last usable content stays in use: a failed
rotation must not end all sessions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

import structlog

from runtime.process.tasks import until_tick
from runtime.tokens.key_files import TokenKeysError, unix_now

PERIOD_S: Final = 1.0

_log = structlog.get_logger(__name__)


class Ring(Protocol):
    """The content of a key file."""

    @property
    def active(self) -> str:
        """The kid of the key that signs."""
        ...

    @property
    def ends_s(self) -> int | None:
        """The time when the first of the keys ends, in Unix seconds; None when none does."""
        ...


T = TypeVar("T", bound=Ring)


class KeyWatch(Generic[T]):
    """`current` is the newest usable content of a file; reading it costs nothing."""

    def __init__(self, path: Path, load: Callable[[Path], T]) -> None:
        """Reads the file; TokenKeysError when it is unusable."""
        self._path = path
        self._load = load
        self._tell: list[Callable[[T], None]] = []
        self._identity = self._look()
        self._fault = ""
        self.current = load(path)

    def on_change(self, tell: Callable[[T], None]) -> None:
        """Call `tell` with every new content."""
        self._tell.append(tell)

    async def run(self) -> None:
        """Follow the file until cancelled."""
        while True:
            await asyncio.sleep(until_tick(PERIOD_S))
            self.step()

    def step(self) -> None:
        """One check. Reads the file if its identity has changed, or if one of the keys has ended."""
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
