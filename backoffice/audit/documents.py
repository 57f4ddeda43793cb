"""The audit log as JSON and CSV: query and response models. Performs no I/O."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Annotated, Any, Final

import orjson
from pydantic import ConfigDict, Field

from backoffice.audit.store import Entry, Filters
from backoffice.web.fields import Model, Moment, Page, Resource, Time, format_time
from domain.ids import parse_uuid
from runtime.audit import Action, object_name

COLUMNS: Final = ("at", "actor", "action", "object", "outcome", "times", "client", "request_id", "before", "after")
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would calculate a cell that begins so
_KINDS: Final = sorted({action.partition(".")[0] for action in Action})

# An export records its filters, so they must not hold a mail address. Names of operators may have an `@`.
_Actor = Annotated[str | None, Field(min_length=1, max_length=300, pattern=r"^(operator:[!-~]+|[!-?A-~]+)$")]
_Term = Annotated[str | None, Field(min_length=1, max_length=300, pattern=r"^[!-?A-~]+$")]


class _Terms(Model):
    """The filters of list and export."""

    actor: _Actor = Field(None, description="A user id, `anonymous`, `backoffice` or `operator:NAME`")
    action: _Term = Field(None, description="An action such as `sale.publish`, or its verb: `publish`")
    object: _Term = Field(None, description="`kind:id` such as `sale:...`, or the id alone")
    since: Moment | None = Field(None, description="No entries of before this time")
    model_config = ConfigDict(extra="ignore", frozen=True)

    def filters(self) -> Filters:
        """The conditions of the store."""
        actor = self.actor and _canonical(self.actor.removeprefix("user:"))
        return Filters(actor, _actions(self.action), _objects(self.object), self.since)


class AuditQuery(_Terms, Page):
    """Query of the list."""


class ExportQuery(_Terms):
    """Query of the export."""


class AuditEntry(Resource):
    """One entry: who did what.

    `before` and `after` hold the members that changed. `outcome` is `done` or the code of the refusal. `times` is more
    than 1 for refusals that were put together.
    """

    id: str
    at: Time
    actor: str
    action: str
    object: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    client: str | None
    request_id: str | None
    outcome: str
    times: int


class AuditList(Resource):
    """A page of entries, newest first."""

    items: list[AuditEntry]
    next_cursor: str | None


def audit_entry(entry: Entry) -> AuditEntry:
    """An entry as JSON."""
    return AuditEntry(
        id=str(entry.id),
        at=entry.at,
        actor=entry.actor,
        action=entry.action,
        object=entry.object,
        before=entry.before,
        after=entry.after,
        client=entry.client,
        request_id=entry.request_id,
        outcome=entry.outcome,
        times=entry.times,
    )


def csv_lines(entries: Iterable[Entry]) -> bytes:
    """Lines of the export (RFC 4180). No cell begins like a formula."""
    return _lines(_cells(entry) for entry in entries)


def csv_header() -> bytes:
    """The first line of the export."""
    return _lines([list(COLUMNS)])


def csv_end(text: str) -> bytes:
    """A last line that says why the export ends there."""
    return _lines([["", "", "", "", text, "", "", "", "", ""]])


def _lines(rows: Iterable[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([_safe(cell) for cell in row] for row in rows)
    return text.getvalue().encode()


def _safe(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def _cells(entry: Entry) -> list[str]:
    return [
        format_time(entry.at),
        entry.actor,
        entry.action,
        entry.object,
        entry.outcome,
        str(entry.times),
        entry.client or "",
        entry.request_id or "",
        _json(entry.before),
        _json(entry.after),
    ]


def _json(members: dict[str, Any] | None) -> str:
    # A spreadsheet of some languages splits at semicolons, also inside of a cell: a formula might follow.
    return "" if members is None else orjson.dumps(members).decode().replace(";", r"\u003b")


def _actions(term: str | None) -> tuple[str, ...] | None:
    """The actions that a filter means: a verb alone means it of every subject."""
    if term is None:
        return None
    if "." in term:
        return (term,)
    return tuple(action.value for action in Action if term in action.split("."))


def _objects(term: str | None) -> tuple[str, ...] | None:
    """The objects that a filter means: an id alone means it of every kind."""
    if term is None:
        return None
    kind, colon, id_ = term.partition(":")
    if colon:
        return (object_name(kind, _canonical(id_)),)
    return (term, *(object_name(kind, _canonical(term)) for kind in _KINDS))


def _canonical(id_: str) -> str:
    """A UUID as entries have it."""
    return str(parse_uuid(id_) or id_)
