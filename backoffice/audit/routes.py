"""The audit log over HTTP, for staff: a list with filters, and an export as CSV."""

from __future__ import annotations

from backoffice.audit.documents import AuditList, AuditQuery, ExportQuery, audit_entry
from backoffice.audit.export import Exports
from backoffice.audit.store import AuditLog
from backoffice.stores import Stores
from backoffice.web.fields import decode_cursor, encode_cursor
from backoffice.web.messages import STAFF, Answer, Call
from backoffice.web.routing import Route
from domain.problems import Problem
from runtime.audit import Action, object_name, record

CSV = "text/csv; charset=utf-8"
_KIND = "audit"


class AuditRoutes:
    """The handlers."""

    def __init__(self, log: AuditLog, stores: Stores) -> None:
        """Uses both, owns nothing."""
        self._log = log
        self._exports = Exports(log)
        self._catalogue = stores.catalogue

    async def page(self, _: Call, query: AuditQuery) -> Answer:
        """Entries, newest first."""
        found = await self._log.page(query.filters(), before=decode_cursor(_KIND, query.cursor), limit=query.limit + 1)
        shown = found[: query.limit]
        next_cursor = encode_cursor(_KIND, shown[-1].id) if len(found) > query.limit else None
        return Answer(body=AuditList(items=[audit_entry(entry) for entry in shown], next_cursor=next_cursor))

    async def export(self, _: Call, query: ExportQuery) -> Answer:
        """All entries as CSV. The export itself leaves an entry."""
        filters = query.model_dump(mode="json", exclude_none=True)
        export = self._exports.begin(query.filters())
        try:
            async with self._catalogue.connection() as connection:
                await record(connection, Action.AUDIT_EXPORT, object_name("audit", "entries"), after=filters)
        except BaseException:
            export.close()
            raise
        headers = {"content-disposition": 'attachment; filename="audit.csv"'}
        return Answer(body=export, media_type=CSV, headers=headers)


def routes(audit: AuditRoutes) -> tuple[Route, ...]:
    """The route table of this subject."""
    return (
        Route(
            "GET",
            "/v1/audit",
            audit.page,
            "List who did what, newest first",
            "operations",
            roles=STAFF,
            query=AuditQuery,
            answers=AuditList,
        ),
        Route(
            "GET",
            "/v1/audit/export",
            audit.export,
            "Export who did what as CSV, newest first",
            "operations",
            roles=STAFF,
            query=ExportQuery,
            media_type=CSV,
            problems=(Problem.OVERLOADED,),
            action=Action.AUDIT_EXPORT,
        ),
    )
