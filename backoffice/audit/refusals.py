"""Refusals in the audit log: wrong passwords, lock-outs, actions that a role does not allow.

A refusal has no transaction of a change, and a request must not wait for its entry: an attacker would measure whether
an account exists, or slow the database down. Refusals are noted in memory and written within about a second. Equal ones
within `WINDOW_S` become one entry with a number, so a flood of refusals makes few entries. A crash loses the notes of
the last second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
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

PERIOD_S: Final = 1.0
WINDOW_S: Final = 60.0
REST_S_MAX: Final = 3.0  # for the notes that are left when the process ends
KEYS_MAX: Final = 2000  # different refusals within the window; of more only action and outcome are kept
MANY: Final = "many"  # actor and object of those

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

    Both stay until the write has succeeded, so a repeated write makes no second entry.
    """

    since: float
    request_id: str | None
    times: int = 1
    writing: int = 0
    is_written: bool = False
    id: UUID = field(default_factory=ids.new_uuid7)


class Refusals:
    """The refusals of this process."""

    def __init__(
        self, catalogue: Database, find_user: FindUser, *, keys_max: int = KEYS_MAX, window_s: float = WINDOW_S
    ) -> None:
        """`find_user` finds the account of a folded address. Owns nothing."""
        self._catalogue = catalogue
        self._find_user = find_user
        self._keys_max = keys_max
        self._window_s = window_s
        self._noted: dict[Refusal, _Noted] = {}
        self._failing = False

    def refused(self, act: Act, action: Action, object_: str, outcome: str) -> None:
        """Note a refused request (`web.acts.Recorder`)."""
        refusal = Refusal(action, object_, act.actor, act.client, outcome, act.email_folded)
        self.note(refusal, request_id=act.request_id)

    def succeeded(self, act: Act) -> None:
        """Log changes of accounts (`web.acts.Recorder`): no address, neither of mail nor of network."""
        for entry in act.recorded:
            _log_account(entry.action, entry.object, entry.outcome, act.request_id)

    def note(self, refusal: Refusal, *, request_id: str | None) -> None:
        """Note a refusal; it is written soon."""
        if refusal not in self._noted and len(self._noted) >= self._keys_max:
            refusal, request_id = Refusal(refusal.action, MANY, MANY, None, refusal.outcome), None
        noted = self._noted.get(refusal)
        if noted is None:
            self._noted[refusal] = _Noted(time.monotonic(), request_id)
        else:
            noted.times += 1

    async def run(self, background: TaskSupervisor) -> None:
        """Write notes until cancelled."""
        with background.rounds("audit refusals") as beat:
            while True:
                try:
                    await self.step()
                    self._failing = False
                except AWAY as error:
                    if not self._failing:
                        log.warning("refusals cannot be written", error=type(error).__name__)
                    self._failing = True
                beat()
                await asyncio.sleep(PERIOD_S)

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
        """Write first refusals, and the number of the others when their window ends; the number of entries."""
        now = time.monotonic()
        due: list[tuple[Refusal, _Noted]] = []
        for refusal, noted in list(self._noted.items()):
            is_over = now - noted.since >= self._window_s
            if noted.times and (everything or is_over or not noted.is_written):
                noted.writing = noted.writing or noted.times
                due.append((refusal, noted))
            elif is_over and not noted.times:
                del self._noted[refusal]
        if not due:
            return 0
        try:
            rows = [await self._row(*one) for one in due]
            async with self._catalogue.connection() as connection, connection.cursor() as cursor:
                await cursor.executemany(SQL["add_refusal"], rows)
        except (psycopg.DataError, psycopg.IntegrityError):
            # A fault of ours. Without this, what a client has sent could keep all later refusals from being written.
            log.exception("refusals are dropped", refusals=len(due))
            rows = []
        for row in rows:
            _log_account(row["action"], row["object"], row["outcome"], row["request_id"], row["times"])
        for _, noted in due:
            noted.times -= noted.writing
            noted.writing = 0
            noted.is_written, noted.since, noted.id = True, now, ids.new_uuid7()
        return len(due)

    async def _row(self, refusal: Refusal, noted: _Noted) -> dict[str, Any]:
        about = refusal.object
        if refusal.email_folded is not None:
            user_id = await self._find_user(refusal.email_folded)
            about = UNKNOWN_OBJECT if user_id is None else object_name("user", user_id)
        return {
            "id": noted.id,
            "actor": refusal.actor,
            "action": refusal.action,
            "object": about,
            "client": refusal.client,
            "request_id": noted.request_id,
            "outcome": refusal.outcome,
            "times": noted.writing,
        }


def _log_account(action: str, object_: str, outcome: str, request_id: str | None, times: int = 1) -> None:
    if action.startswith("user."):
        log.info("account action", action=action, object=object_, outcome=outcome, request_id=request_id, times=times)
