"""Refusals in the audit log: wrong passwords, lock-outs, actions that a role does not allow.

A refusal has no transaction of a change, and a request must not wait for its entry: an attacker would measure whether
an account exists, or slow the database down. Refusals are noted in memory and written within about a second. Equal ones
within `WINDOW_S` become one entry with a number, so a flood of refusals makes few entries. A flood of one source leaves
room for the refusals of others. A crash loses the notes of the last second.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg
import structlog

from backoffice.audit.store import SQL
from backoffice.stores import AWAY
from domain import ids
from runtime.audit import UNKNOWN_OBJECT, Act, Action, object_name
from runtime.postgres.databases import Database
from runtime.process.supervision import TaskSupervisor
from runtime.process.tasks import until_tick

PERIOD_S: Final = 1.0
WINDOW_S: Final = 60.0
REST_S_MAX: Final = 3.0  # for the notes that are left when the process ends
ACTOR_KEYS_MAX: Final = 100  # different refusals of one actor at one client within the window; more lose their object
KEYS_MAX: Final = 2000  # different refusals within the window; of more only action and outcome are kept
MANY: Final = "many"  # instead of values that are not kept
FINDS_AT_ONCE: Final = 8
FIND_S_MAX: Final = 20.0  # for the accounts of one round

log = structlog.get_logger(__name__)

FindUser = Callable[[str], Awaitable[UUID | None]]


class Refusal(NamedTuple):
    """A refused request. Equal ones are put together. `email_folded` finds the account, and is never stored."""

    action: Action
    object: str
    actor: str
    client: str | None
    outcome: str
    email_folded: str | None = None


@dataclass(slots=True)
class _Noted:
    """`times` of a refusal are not written yet; `writing` of them are on their way, as the entry `id`.

    Both stay until the write has succeeded, so a repeated write makes no second entry. `at` and `id` have the time of
    the first one that is not written. `object` is None until the account of the address is found.
    """

    since: float
    request_id: str | None
    object: str | None
    times: int = 0
    writing: int = 0
    is_written: bool = False
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    id: UUID = field(default_factory=ids.new_uuid7)

    def add(self) -> None:
        """Note one more."""
        if not self.times:
            self.at, self.id = datetime.now(UTC), ids.new_uuid7()
        self.times += 1


class Refusals:
    """The refusals of this process."""

    def __init__(
        self,
        catalogue: Database,
        find_user: FindUser,
        *,
        keys_max: int = KEYS_MAX,
        actor_keys_max: int = ACTOR_KEYS_MAX,
        window_s: float = WINDOW_S,
    ) -> None:
        """`find_user` finds the account of a folded address. Owns nothing."""
        self._catalogue = catalogue
        self._find_user = find_user
        self._keys_max = keys_max
        self._actor_keys_max = actor_keys_max
        self._window_s = window_s
        self._noted: dict[Refusal, _Noted] = {}
        self._keys_of: Counter[tuple[str | None, str]] = Counter()  # by client and actor
        self._failing = False

    def refused(self, act: Act, action: Action, object_: str, outcome: str) -> None:
        """Note a refused request (`web.acts.Recorder`)."""
        refusal = Refusal(action, object_, act.actor, act.client, outcome, act.email_folded)
        self.note(refusal, request_id=act.request_id)

    def answered(self, act: Act) -> None:
        """Log changes of accounts (`web.acts.Recorder`): no address, neither of mail nor of network."""
        for entry in act.recorded:
            _log_account(entry.action, entry.object, entry.outcome, act.request_id)

    def note(self, refusal: Refusal, *, request_id: str | None) -> None:
        """Note a refusal; it is written soon."""
        if refusal not in self._noted and self._keys_of[_source(refusal)] >= self._actor_keys_max:
            refusal, request_id = refusal._replace(object=MANY, email_folded=None), None
        if refusal not in self._noted and len(self._noted) >= self._keys_max:
            refusal, request_id = Refusal(refusal.action, MANY, MANY, None, refusal.outcome), None
        noted = self._noted.get(refusal)
        if noted is None:
            known = refusal.object if refusal.email_folded is None else None
            noted = self._noted[refusal] = _Noted(time.monotonic(), request_id, known)
            self._keys_of[_source(refusal)] += 1
        noted.add()

    async def run(self, background: TaskSupervisor) -> None:
        """Write notes until cancelled. Rounds that keep failing by another error than AWAY are a problem."""
        with background.rounds("audit refusals") as beat:
            while True:
                try:
                    await self.step()
                    self._failing = False
                    beat()
                except AWAY as error:
                    if not self._failing:
                        log.warning("refusals cannot be written", error=type(error).__name__)
                    self._failing = True
                    beat()
                except psycopg.Error as error:  # such as a table that a migration has not made yet
                    if not self._failing:
                        log.error("writing refusals failed", error=type(error).__name__)
                    self._failing = True
                await asyncio.sleep(until_tick(PERIOD_S))

    async def write_rest(self) -> None:
        """Write all notes at the end of the process, if the databases answer."""
        try:
            async with asyncio.timeout(REST_S_MAX):
                await self.step(everything=True)
        except AWAY as error:
            log.warning("refusals are lost", refusals=len(self._noted), error=type(error).__name__)
        except Exception:
            log.exception("refusals are lost", refusals=len(self._noted))

    async def step(self, *, everything: bool = False) -> int:
        """Write first refusals, and the number of the others when their window ends; the number of entries.

        A refusal waits while the shard of its address is away, and the others are written; then raises the error.
        """
        now = time.monotonic()
        due: list[tuple[Refusal, _Noted]] = []
        for refusal, noted in list(self._noted.items()):
            is_over = now - noted.since >= self._window_s
            if noted.times and (everything or is_over or not noted.is_written):
                due.append((refusal, noted))
            elif is_over and not noted.times:
                del self._noted[refusal]
                self._keys_of[_source(refusal)] -= 1
                if not self._keys_of[_source(refusal)]:
                    del self._keys_of[_source(refusal)]
        away = await self._find_objects([one for one in due if one[1].object is None])
        due = [one for one in due if one[1].object is not None]
        if due:
            await self._write(due)
        for _, noted in due:
            noted.times -= noted.writing
            noted.writing = 0
            noted.is_written, noted.since = True, now
            if noted.times:  # noted during the write
                noted.at, noted.id = datetime.now(UTC), ids.new_uuid7()
        if away is not None:
            raise away
        return len(due)

    async def _find_objects(self, unknown: list[tuple[Refusal, _Noted]]) -> Exception | None:
        """Find the accounts of addresses; the error of a shard that is away. The next round begins with the others."""
        away: Exception | None = None
        deadline = time.monotonic() + FIND_S_MAX
        for first in range(0, len(unknown), FINDS_AT_ONCE):
            part = unknown[first : first + FINDS_AT_ONCE]
            found = await asyncio.gather(
                *(self._find_user(one.email_folded or "") for one, _ in part), return_exceptions=True
            )
            for (refusal, noted), user_id in zip(part, found, strict=True):
                if isinstance(user_id, AWAY):
                    away = user_id
                    self._noted[refusal] = self._noted.pop(refusal)
                elif isinstance(user_id, BaseException):
                    raise user_id
                else:
                    noted.object = UNKNOWN_OBJECT if user_id is None else object_name("user", user_id)
            if time.monotonic() > deadline:
                break
        return away

    async def _write(self, due: list[tuple[Refusal, _Noted]]) -> None:
        rows = []
        for refusal, noted in due:
            noted.writing = noted.writing or noted.times
            rows.append(_row(refusal, noted))
        try:
            async with self._catalogue.connection() as connection, connection.cursor() as cursor:
                await cursor.executemany(SQL["add_refusal"], rows)
        except (psycopg.DataError, psycopg.IntegrityError):
            rows = await self._write_each(rows)
        for row in rows:
            _log_account(row["action"], row["object"], row["outcome"], row["request_id"], row["times"])

    async def _write_each(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Write the rows that PostgreSQL takes; those rows. One that it does not take is a fault of ours, and dropped:

        otherwise a client could keep the refusals of all from being written.
        """
        written = []
        async with self._catalogue.connection() as connection:
            for row in rows:
                try:
                    async with connection.transaction():
                        await connection.execute(SQL["add_refusal"], row)
                    written.append(row)
                except (psycopg.DataError, psycopg.IntegrityError) as error:
                    # Without the text of the error, which repeats the row.
                    log.error("a refusal is dropped", action=row["action"], error=type(error).__name__)
        return written


def _source(refusal: Refusal) -> tuple[str | None, str]:
    return refusal.client, refusal.actor


def _row(refusal: Refusal, noted: _Noted) -> dict[str, Any]:
    return {
        "id": noted.id,
        "at": noted.at,
        "actor": refusal.actor,
        "action": refusal.action,
        "object": noted.object,
        "client": refusal.client,
        "request_id": noted.request_id,
        "outcome": refusal.outcome,
        "times": noted.writing,
    }


def _log_account(action: str, object_: str, outcome: str, request_id: str | None, times: int = 1) -> None:
    if action.startswith("user."):
        log.info("account action", action=action, object=object_, outcome=outcome, request_id=request_id, times=times)
