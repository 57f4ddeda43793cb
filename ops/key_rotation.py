"""Rotates the keys of access tokens while all services run: users stay logged in, and no order is refused.

    add a pending key  ->  wait until every process knows it  ->  make it active  ->  the old key expires later

Each step replaces the whole file, and the file's content determines the next step. After a crash between two steps all
tokens are valid, and running it again continues with the next step. Processes follow the files by themselves
(`runtime.tokens.key_watch`) and export the keys that they know as metrics.
"""

from __future__ import annotations

import fcntl
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from runtime.process.errors import OperatorError
from runtime.tokens.key_files import KeyRingDocument, TokenKeysError, read_key_file, replace_key_file, unix_now
from runtime.tokens.keys import make_staff_key, make_token_key, read_staff_document

BUYER_TOKEN_S_MAX: Final = 86_400  # tokens of synthetic buyers; tokens of logins live for 15 minutes
STAFF_TOKEN_S_MAX: Final = 900
SLACK_S: Final = 120  # for clocks that differ, and the seconds until no process signs with the old key
POLL_S: Final = 0.2
ANSWER_S_MAX: Final = 5.0


class RotationWaits(OperatorError):
    """A process did not report the key in time. All tokens stay valid; running the rotation again continues it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the two key rings: reads its file, generates a key, bounds the remaining life of old tokens."""

    name: str
    path: Path
    read: Callable[[Path], KeyRingDocument]
    make: Callable[[], tuple[str, str]]
    token_s_max: int
    services: tuple[str, ...]


def buyer_kind(path: Path) -> Kind:
    """The HS256 ring: the backoffice mints tokens, edges verify them."""
    return Kind("buyer", path, _read_ring, make_token_key, BUYER_TOKEN_S_MAX, ("edge", "backoffice"))


def staff_kind(path: Path) -> Kind:
    """The Ed25519 ring of backoffices."""
    return Kind("staff", path, read_staff_document, make_staff_key, STAFF_TOKEN_S_MAX, ("backoffice",))


def _read_ring(path: Path) -> KeyRingDocument:
    return KeyRingDocument.parse(read_key_file(path), path=path)


def plan(kind: Kind, *, retire: bool) -> dict[str, Any]:
    """The steps that a rotation would take now."""
    document = kind.read(kind.path).swept(unix_now())
    return {
        "active": document.active,
        "pending": document.pending,
        "would": "activate the pending key" if document.pending else "add a key and activate it",
        "keys_ending": dict(document.until),
        "would_retire": sorted(document.keys.keys() - {document.pending}) if retire else [],
    }


def rotate(
    kind: Kind, processes: Mapping[str, str], *, retire: bool, wait_s_max: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Rotate one ring and return the result. `processes` maps a name to the address below which /metrics is.

    Asks only processes with names that begin with `edge` or `backoffice`: they have keys. Raises RotationWaits,
    TokenKeysError.
    """
    asked = {name: url for name, url in processes.items() if name.startswith(kind.services)}
    with _alone(kind.path):
        document = kind.read(kind.path)
        if document.pending is None:
            document = document.swept(unix_now())
            if retire:
                document = document.retired()  # also makes room in a full ring
            document = document.with_pending(*kind.make())
            replace_key_file(kind.path, document.dump())
        new, old = document.pending, document.active
        assert new is not None
        say(f"{kind.name}: key {new} is added, waiting until all processes know it")
        _await(kind, asked, lambda known: known.get(new) is not None, wait_s_max)
        # Minting processes use the new key as soon as they have read the file, and the old one until then.
        document = document.activated(until=unix_now() + kind.token_s_max + SLACK_S)
        replace_key_file(kind.path, document.dump())
        say(f"{kind.name}: key {new} is active, waiting until all processes use it")
        _await(kind, asked, lambda known: known.get(new) is True, wait_s_max)
        if retire:
            document = document.retired()
            replace_key_file(kind.path, document.dump())
            say(f"{kind.name}: key {old} is retired, waiting until all processes refuse it")
            _await(kind, asked, lambda known: known.keys() <= document.keys.keys(), wait_s_max)
    return {
        "active": new,
        "previous": old,
        "previous_ends_at": document.until.get(old),  # Unix seconds; None: the key is removed
        "processes": sorted(asked),
    }


def _await(
    kind: Kind, processes: Mapping[str, str], condition: Callable[[Mapping[str, bool]], bool], wait_s_max: float
) -> None:
    """Return when all workers of all processes meet the condition on `kid -> active`."""
    deadline = time.monotonic() + wait_s_max
    waiting = dict(processes)
    while waiting:
        for name, url in list(waiting.items()):
            workers = _known(kind, url)
            if workers and all(condition(known) for known in workers):
                del waiting[name]
        if waiting:
            if time.monotonic() > deadline:
                raise RotationWaits(
                    f"{kind.name}: {', '.join(sorted(waiting))} did not follow within {wait_s_max:.0f} s; all tokens "
                    "are still valid. Run the command again to continue"
                )
            time.sleep(POLL_S)


def _known(kind: Kind, url: str) -> list[dict[str, bool]]:
    """`kid -> active` for each worker of a process; empty while the process does not answer."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=ANSWER_S_MAX) as answer:  # noqa: S310 - our own process
            text = answer.read().decode("utf-8")
    except (urllib.error.URLError, OSError):
        return []
    workers: dict[str, dict[str, bool]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            worker = sample.labels.get("worker", "")
            if sample.name.endswith("_ready") and worker:
                workers.setdefault(worker, {})  # also a worker that reports no key yet
            if sample.name.endswith("_token_key_info") and sample.labels.get("kind", kind.name) == kind.name:
                workers.setdefault(worker, {})[sample.labels["kid"]] = sample.labels["active"] == "1"
    return list(workers.values())


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock: of two concurrent rotations, each would add a key. The second one gets TokenKeysError."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise TokenKeysError(f"{path}: another rotation is running; try again when it has ended") from error
    finally:
        os.close(folder)
