"""Types of fields that several subjects share: text that PostgreSQL can hold, ids, times. Performs no I/O."""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    model_validator,
)
from pydantic_core import CoreSchema

from backoffice.web.messages import invalid
from domain import ids

LIMIT_DEFAULT = 50
LIMIT_MAX = 200
_TURNS = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))


class Model(BaseModel):
    """What is sent: members beside those named are refused when it comes in."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Change(Model):
    """What a PATCH sends: members that are there replace those of the resource, and none may be null."""

    @model_validator(mode="after")
    def _no_nulls(self) -> Any:
        nulls = sorted(name for name in self.model_fields_set if getattr(self, name) is None)
        if nulls:
            raise ValueError(f"null is not allowed: {', '.join(nulls)}")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """A member may be left out; that its default is None is our own matter."""
        described = handler.resolve_ref_schema(handler(schema))
        for name, member in described.get("properties", {}).items():
            described["properties"][name] = without_null(member)
        return described


def without_null(member: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a member that is left out rather than null."""
    kept = {name: value for name, value in member.items() if name not in ("anyOf", "default", "title")}
    choices = [choice for choice in member.get("anyOf", []) if choice.get("type") != "null"]
    if len(choices) == 1:
        kept |= choices[0]
    elif choices:
        kept["anyOf"] = choices
    return kept


@dataclass(frozen=True, slots=True)
class Described:
    """Puts the pattern (ECMA-262) of what a validator checks into the JSON Schema, for those who only read that."""

    pattern: str

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The member's schema with the pattern."""
        return {**handler(schema), "pattern": self.pattern}


class Resource(BaseModel):
    """What is answered."""

    model_config = ConfigDict(frozen=True)


def printable(text: str) -> str:
    """The text; ValueError for control characters other than line breaks and tabs."""
    # NUL cannot be stored, other control characters have no use in a name and some in an attack on a terminal or log.
    if any(unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t" for character in text):
        raise ValueError("control characters are not allowed")
    return text


def _one_line(text: str) -> str:
    if any(unicodedata.category(character) in ("Zl", "Zp") or character in "\n\t" for character in text):
        raise ValueError("line breaks and tabs are not allowed")
    # They turn what follows around: a name could pass for another one wherever it is shown.
    if any(unicodedata.bidirectional(character) in _TURNS for character in text):
        raise ValueError("characters that change the direction of writing are not allowed")
    if not any(unicodedata.category(character)[0] in "LNPS" for character in text):
        raise ValueError("must not be blank")
    return text


def _dated(time: Any) -> datetime:
    # Not pydantic's reading: a text of digits passes there for seconds since 1970, "2026" for half past midnight of that year.
    try:
        if isinstance(time, str) and _DATED.match(time):
            return datetime.fromisoformat(time.upper())
    except ValueError:
        pass
    raise ValueError("is not a date and time, as in 2026-01-01T00:00:00Z")


def _in_utc(time: datetime) -> datetime:
    if time.tzinfo is None:
        raise ValueError("needs a time zone, as in 2026-01-01T00:00:00Z")
    try:
        # Redis time has milliseconds; what is finer could not be compared with it.
        return time.astimezone(UTC).replace(microsecond=time.microsecond // 1000 * 1000)
    except OverflowError as error:
        raise ValueError("is out of range") from error


def format_time(time: datetime) -> str:
    """`2026-01-01T00:00:00.123Z`."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ASCII only: no look-alikes, no normal forms, one folding. Quoted local parts and address literals are left out.
_EMAIL = r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,63}$"

TEXT_PATTERN = r"^[^\u0000-\u0008\u000b-\u001f\u007f-\u009f]*$"
_NOT_IN_A_LINE = r"\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069"
Text = Annotated[str, AfterValidator(printable), Described(TEXT_PATTERN)]
Email = Annotated[str, Field(pattern=_EMAIL, max_length=254)]
Name = Annotated[
    str,
    Field(min_length=1, max_length=200),
    AfterValidator(printable),
    AfterValidator(_one_line),
    Described(rf"^[^{_NOT_IN_A_LINE}]*[^\s{_NOT_IN_A_LINE}][^{_NOT_IN_A_LINE}]*$"),
]
Sku = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$", description="ISO 4217")]
_DATED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}")
Moment = Annotated[datetime, BeforeValidator(_dated), AfterValidator(_in_utc)]
Time = Annotated[datetime, PlainSerializer(format_time, return_type=str)]
PriceMinor = Annotated[int, Field(ge=0, le=10**12, description="In minor units of the currency")]


class Page(Model):
    """Query of a list."""

    cursor: str | None = Field(None, max_length=512, description="`next_cursor` of the page before")
    limit: int = Field(LIMIT_DEFAULT, ge=1, le=LIMIT_MAX)
    model_config = ConfigDict(extra="ignore", frozen=True)


def encode_cursor(kind: str, last: UUID) -> str:
    """An opaque cursor: behind `last` in a list of this kind."""
    return base64.urlsafe_b64encode(f"{kind}:".encode() + last.bytes).rstrip(b"=").decode("ascii")


def decode_cursor(kind: str, cursor: str | None) -> UUID | None:
    """Inverse of `encode_cursor`, None for none; Refused for anything that this list did not give out."""
    if cursor is None:
        return None
    prefix = f"{kind}:".encode()
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("/cursor", "is not a cursor of this list") from error
    if not raw.startswith(prefix) or len(raw) != len(prefix) + 16:
        raise invalid("/cursor", "is not a cursor of this list")
    return UUID(bytes=raw[len(prefix) :])


def query_id(pointer: str, text: str | None) -> UUID | None:
    """An id in a query; Refused when it cannot be one."""
    if text is None:
        return None
    value = ids.parse_uuid(text)
    if value is None:
        raise invalid(pointer, "is not an id")
    return value
