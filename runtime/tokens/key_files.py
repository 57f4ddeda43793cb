"""Key files: a ring of named keys, one of which signs. Read and replaced as a whole, mode 0600.

    {"active": kid, "keys": {kid: text}, "pending": kid, "until": {kid: Unix seconds}}

New tokens carry the active `kid`. A pending key verifies, and will sign when every process knows it. A key with an
`until` verifies the tokens that it signed, and is ignored from that second on. The last two members are optional.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from runtime.process.errors import OperatorError

KEYS_MAX: Final = 16
_KID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class TokenKeysError(OperatorError):
    """A key file cannot be used; the message contains the file and the reason, never a key."""


@dataclass(frozen=True, slots=True)
class KeyRingDocument:
    """The content of a key file. Methods that change it return a new document."""

    active: str
    keys: Mapping[str, str] = field(repr=False)
    pending: str | None = None
    until: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, *, path: Path) -> KeyRingDocument:
        """TokenKeysError when the text is malformed. Does not check the keys themselves."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TokenKeysError(f"{path}: is not valid JSON") from error
        if not isinstance(document, dict) or not isinstance(document.get("keys"), dict):
            raise TokenKeysError(f'{path}: must have the form {{"active": kid, "keys": {{kid: text}}}}')
        keys, until, pending = document["keys"], document.get("until", {}), document.get("pending")
        if not 1 <= len(keys) <= KEYS_MAX:
            raise TokenKeysError(f"{path}: must contain 1 to {KEYS_MAX} keys")
        if not all(_KID.fullmatch(kid) for kid in keys):
            raise TokenKeysError(f"{path}: a kid must have 1-64 of the characters A-Z a-z 0-9 _ -")
        if not all(isinstance(key, str) for key in keys.values()):
            raise TokenKeysError(f"{path}: a key must be a string")
        if document.get("active") not in list(keys):
            raise TokenKeysError(f"{path}: the active kid is not among the keys")
        if pending is not None and (pending not in list(keys) or pending == document["active"]):
            raise TokenKeysError(f"{path}: the pending kid is not among the other keys")
        if not isinstance(until, dict) or not all(type(seconds) is int for seconds in until.values()):
            raise TokenKeysError(f"{path}: `until` must have the form {{kid: Unix seconds}}")
        ends = {kid: seconds for kid, seconds in until.items() if kid in keys and kid != document["active"]}
        return cls(document["active"], keys, pending, ends)

    def dump(self) -> bytes:
        """The content of the file."""
        document: dict[str, Any] = {"active": self.active, "keys": dict(self.keys)}
        if self.pending is not None:
            document["pending"] = self.pending
        if self.until:
            document["until"] = dict(self.until)
        return json.dumps(document).encode()

    def swept(self, now_s: int) -> KeyRingDocument:
        """Without keys that have ended."""
        return self._with(kid for kid in self.keys if self.until.get(kid, now_s + 1) > now_s)

    def with_pending(self, kid: str, key: str) -> KeyRingDocument:
        """With a pending key, unless there is one. TokenKeysError when the ring is full."""
        if self.pending is not None:
            return self
        if len(self.keys) >= KEYS_MAX:
            raise TokenKeysError(
                f"the ring already has {KEYS_MAX} keys; wait until one ends, or remove old keys with --retire"
            )
        return KeyRingDocument(self.active, {**self.keys, kid: key}, kid, self.until)

    def activated(self, *, until: int) -> KeyRingDocument:
        """With the pending key active; the former active key ends at `until` (Unix seconds)."""
        if self.pending is None:
            return self
        return KeyRingDocument(self.pending, self.keys, None, {**self.until, self.active: until})

    def retired(self) -> KeyRingDocument:
        """With only the active and the pending key."""
        return self._with(kid for kid in self.keys if kid in (self.active, self.pending))

    def _with(self, kids: Any) -> KeyRingDocument:
        kept = list(kids)
        return KeyRingDocument(
            self.active,
            {kid: self.keys[kid] for kid in kept},
            self.pending,
            {kid: seconds for kid, seconds in self.until.items() if kid in kept},
        )


def read_key_file(path: Path) -> str:
    """The text of the file; TokenKeysError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TokenKeysError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TokenKeysError(f"{path}: is not UTF-8 text") from error


def create_key_file(path: Path, content: bytes) -> None:
    """Create the file atomically: of two processes that start together, one creates it.

    Does nothing when the file exists.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = _stage(path, content)
    try:
        os.link(staging, path)  # unlike rename, fails when another process has created the file
    except FileExistsError:
        return
    finally:
        staging.unlink()


def replace_key_file(path: Path, content: bytes) -> None:
    """Replace the file atomically: a reader sees the old or the new content, also after a crash.

    Keeps mode and owner.
    """
    before = path.stat()
    staging = _stage(path, content)
    try:
        if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(staging, before.st_uid, before.st_gid)
        os.replace(staging, path)
    except BaseException:
        staging.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _stage(path: Path, content: bytes) -> Path:
    staging = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return staging


def unix_now() -> int:
    """The time now in Unix seconds, to compare with `until`."""
    return int(time.time())
