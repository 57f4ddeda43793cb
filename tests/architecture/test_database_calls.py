"""Every connection to PostgreSQL is one whose calls have a deadline, and a lock of a session has a direct address."""

from __future__ import annotations

import re

from tests.architecture.sources import ROOT, package_of, tracked

# Tests, drills and measurements end by their own timeouts.
NOT_CHECKED = {"tests", "perf", "faults"}
UNBOUNDED = re.compile(r"psycopg\.connect\(|(?<!Bounded)\b(?:Async)?Connection\.connect\(")
ALLOWED = {"devstack/servers.py"}  # logs in, within the time for it, and calls nothing
SESSION_LOCK = re.compile(r"pg_(?:try_)?advisory_lock(?:_shared)?\(")
# File with a lock of a session -> the module that opens its connection, and the address there.
LOCKS = {
    "ops/backup/create.py": ("ops/backup/create.py", "catalogue_session_dsn"),
    "migrations/runner.py": ("migrations/runner.py", "catalogue_session_dsn"),
    "ops/resharding/resharding.sql": ("ops/resharding/opening.py", "catalogue_session_dsn"),
    "workers/recovery/rebuild/rebuild.sql": ("workers/recovery/rebuild/__main__.py", "catalogue_session_dsn"),
    "workers/analytics/rebuild/generations.sql": ("workers/analytics/rebuild/__main__.py", "analytics_dsn"),
}


def test_connections_are_bounded() -> None:
    unbounded = {path for path, text in _sources(".py") if UNBOUNDED.search(text) and path not in ALLOWED}
    assert not unbounded, "connect with runtime.postgres, or list the file here"


def test_locks_of_a_session_use_direct_addresses() -> None:
    sources = dict(_sources(".py", ".sql"))
    assert {path for path, text in sources.items() if SESSION_LOCK.search(text)} == set(LOCKS)
    for module, address in LOCKS.values():
        assert f"settings.{address}" in sources[module]


def _sources(*suffixes: str) -> list[tuple[str, str]]:
    return [
        (path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for path in tracked()
        if path.suffix in suffixes and package_of(path) not in NOT_CHECKED
    ]
