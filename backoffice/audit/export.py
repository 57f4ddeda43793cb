"""The export of the audit log: a stream of CSV lines, read page by page while the client takes them."""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import UUID

from backoffice.audit.documents import csv_end, csv_header, csv_lines
from backoffice.audit.store import AuditLog, Filters
from backoffice.web.fields import format_time

EXPORT_ENTRIES_MAX: Final = 100_000
PAGE_ENTRIES: Final = 1000
PAGE_S_MAX: Final = 15.0


class Export:
    """The stream of one export (`web.messages.Stream`). A failed read breaks it off: the client gets no whole file."""

    def __init__(self, log: AuditLog, filters: Filters, *, entries_max: int = EXPORT_ENTRIES_MAX) -> None:
        """Reads nothing yet. After `entries_max` entries a last line says that there are more."""
        self._log = log
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
        async with asyncio.timeout(PAGE_S_MAX):
            found = await self._log.page(self._filters, before=self._before, limit=limit + 1)
        page = found[:limit]
        if page:
            self._before = page[-1].id
        self._left -= len(page)
        is_cut = len(found) > limit and not self._left
        self._ended = len(found) <= limit or is_cut
        lines = csv_lines(page)
        if is_cut:
            lines += csv_end(f"the export ends here; older entries than {format_time(page[-1].at)} are left out")
        return lines or None

    def close(self) -> None:
        """End the stream."""
        self._ended = True
