"""The export of the audit log: a stream of CSV lines, read page by page while the client takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final
from uuid import UUID

import psycopg
import structlog

from backoffice.audit.documents import csv_end, csv_header, csv_lines
from backoffice.audit.store import AuditLog, Entry, Filters
from backoffice.stores import AWAY
from backoffice.web.fields import format_time
from backoffice.web.messages import Refused
from domain.problems import Problem

EXPORT_ENTRIES_MAX: Final = 100_000
PAGE_ENTRIES: Final = 500
PAGE_S_MAX: Final = 15.0
EXPORTS_MAX: Final = 2  # at once in a process: each uses a connection of every database
BUSY_S: Final = 5  # until a refused export may be tried again

log = structlog.get_logger(__name__)


class ExportBroken(ConnectionError):
    """A page cannot be read. The connection ends before the end of the body."""


class Export:
    """The stream of one export (`web.messages.Stream`). A failed read breaks it off: the client gets no whole file."""

    def __init__(
        self,
        entries: AuditLog,
        filters: Filters,
        *,
        entries_max: int = EXPORT_ENTRIES_MAX,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """Reads nothing yet. After `entries_max` entries a last line says that there are more.

        `ended` is called once, at the end or when the stream is closed.
        """
        self._entries = entries
        self._at_end: Callable[[], None] | None = ended
        self._filters = filters
        self._left = entries_max
        self._before: UUID | None = None
        self._started = False
        self._ended = False

    async def next_piece(self) -> bytes | None:
        """The header line, then a page of entries each."""
        if self._ended:
            return None
        if not self._started:
            self._started = True
            return csv_header()
        limit = min(PAGE_ENTRIES, self._left)
        found = await self._read(limit + 1)
        page = found[:limit]
        if page:
            self._before = page[-1].id
        self._left -= len(page)
        is_cut = len(found) > limit and not self._left
        if len(found) <= limit or is_cut:
            self.close()
        lines = csv_lines(page)
        if is_cut:
            lines += csv_end(f"the export ends here; older entries than {format_time(page[-1].at)} are left out")
        return lines or None

    def close(self) -> None:
        """End the stream."""
        self._ended = True
        if self._at_end is not None:
            ended, self._at_end = self._at_end, None
            ended()

    async def _read(self, limit: int) -> list[Entry]:
        try:
            async with asyncio.timeout(PAGE_S_MAX):
                return await self._entries.page(self._filters, before=self._before, limit=limit)
        except (*AWAY, psycopg.Error) as error:
            log.warning("an export of the audit log broke off", error=type(error).__name__)
            raise ExportBroken from error


class Exports:
    """The exports of a process, at most `EXPORTS_MAX` at once."""

    def __init__(self, entries: AuditLog) -> None:
        """Uses the log, owns nothing."""
        self._entries = entries
        self._running = 0

    def begin(self, filters: Filters) -> Export:
        """A new export, whose end makes room for another one; Refused(`overloaded`) while `EXPORTS_MAX` run."""
        if self._running >= EXPORTS_MAX:
            detail = f"{EXPORTS_MAX} exports of the audit log are running. Try again later"
            raise Refused(Problem.OVERLOADED, detail, retry_after_s=BUSY_S)
        self._running += 1
        return Export(self._entries, filters, ended=self._ended)

    def _ended(self) -> None:
        self._running -= 1
