"""Types of fields that several subjects share: text that PostgreSQL can store, ids, times, cursors. Performs no I/O."""

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
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema

from backoffice.web.messages import invalid
from domain import ids
from domain.currencies import MINOR_UNIT_PLACES

LIMIT_DEFAULT = 50
LIMIT_MAX = 200
# Characters without width or ink, and tags. Not the two joiners, which Persian, Indic scripts and emoji need.
_INVISIBLE_RANGES = (
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2060-\u2064\u206a-\u206f\u2800\u3164\ufeff\uffa0"
    f"{chr(0xE0000)}-{chr(0xE007F)}"
)
_INVISIBLE = re.compile(f"[{_INVISIBLE_RANGES}]")
_TURNS = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))


class Model(BaseModel):
    """A request body: unknown members are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Change(Model):
    """The body of a PATCH: its members replace those of the resource, and must not be null."""

    @model_validator(mode="after")
    def _no_nulls(self) -> Any:
        nulls = sorted(name for name in self.model_fields_set if getattr(self, name) is None)
        if nulls:
            raise ValueError(f"members must not be null: {', '.join(nulls)}")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema without null: a client leaves a member out, and only our code sees the default None."""
        described = handler.resolve_ref_schema(handler(schema))
        for name, member in described.get("properties", {}).items():
            described["properties"][name] = without_null(member)
        return described


def without_null(member: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a member that may be absent and must not be null."""
    kept = {name: value for name, value in member.items() if name not in ("anyOf", "default", "title")}
    choices = [choice for choice in member.get("anyOf", []) if choice.get("type") != "null"]
    if len(choices) == 1:
        kept |= choices[0]
    elif choices:
        kept["anyOf"] = choices
    return kept


@dataclass(frozen=True, slots=True)
class Described:
    """Adds the pattern (ECMA-262) that a validator checks to the JSON Schema."""

    pattern: str

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema of the member with the pattern."""
        return {**handler(schema), "pattern": self.pattern}


class Resource(BaseModel):
    """A response body."""

    model_config = ConfigDict(frozen=True)


def plain_text(text: str) -> str:
    """The text in Unicode's composed form (NFC) with line ends of one kind, so that equal texts are equal bytes.

    ValueError for control characters except line breaks and tabs.
    """
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    # PostgreSQL cannot store NUL. Other control characters can attack a terminal or a log.
    if any(unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t" for character in text):
        raise ValueError("control characters are not allowed")
    return text


def _one_line(text: str) -> str:
    if any(unicodedata.category(character) in ("Zl", "Zp") or character in "\n\t" for character in text):
        raise ValueError("line breaks and tabs are not allowed")
    # A name with bidirectional control characters can look like another name.
    if any(unicodedata.bidirectional(character) in _TURNS for character in text):
        raise ValueError("bidirectional control characters are not allowed")
    if _INVISIBLE.search(text):  # so can one with these
        raise ValueError("invisible characters are not allowed")
    if not any(unicodedata.category(character)[0] in "LNPS" for character in text):
        raise ValueError("must not be blank")
    return text


def _currency(code: str) -> str:
    if code not in MINOR_UNIT_PLACES:
        raise ValueError("must be a currency of ISO 4217, such as EUR")
    return code


def _dated(time: Any) -> datetime:
    # Pydantic would accept digits as seconds since 1970: "2026" would be 00:33:46 on 1 January 1970.
    try:
        if isinstance(time, str) and _DATED.match(time):
            return datetime.fromisoformat(time.upper())
    except ValueError:
        pass
    raise ValueError("must be a date and time such as 2026-01-01T00:00:00Z")


def _in_utc(time: datetime) -> datetime:
    if time.tzinfo is None:
        raise ValueError("must have a time zone, as in 2026-01-01T00:00:00Z")
    try:
        # Times are compared with Redis TIME in milliseconds.
        return time.astimezone(UTC).replace(microsecond=time.microsecond // 1000 * 1000)
    except OverflowError as error:
        raise ValueError("is out of range") from error


def format_time(time: datetime) -> str:
    """`2026-01-01T00:00:00.123Z`."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ASCII only: no look-alike letters, no normalisation, one way to fold. No quoted local parts and no address literals.
_EMAIL = r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,63}$"

TEXT_PATTERN = r"^[^\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]*$"
_NOT_IN_A_LINE = r"\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069" + _INVISIBLE_RANGES
Text = Annotated[str, AfterValidator(plain_text), Described(TEXT_PATTERN)]
Email = Annotated[str, Field(pattern=_EMAIL, max_length=254)]
Name = Annotated[
    str,
    Field(min_length=1, max_length=200),
    AfterValidator(plain_text),
    AfterValidator(_one_line),
    Described(rf"^[^{_NOT_IN_A_LINE}]*[^\s{_NOT_IN_A_LINE}][^{_NOT_IN_A_LINE}]*$"),
]
Sku = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Currency = Annotated[
    str,
    AfterValidator(_currency),
    WithJsonSchema({"type": "string", "enum": sorted(MINOR_UNIT_PLACES), "description": "ISO 4217"}),
]
_DATED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}")
Moment = Annotated[datetime, BeforeValidator(_dated), AfterValidator(_in_utc)]
Time = Annotated[datetime, PlainSerializer(format_time, return_type=str)]
PriceMinor = Annotated[int, Field(ge=0, le=10**12, description="In minor units of the currency")]


class Page(Model):
    """The query of a list."""

    cursor: str | None = Field(None, max_length=512, description="`next_cursor` of the previous page")
    limit: int = Field(LIMIT_DEFAULT, ge=1, le=LIMIT_MAX)
    model_config = ConfigDict(extra="ignore", frozen=True)


def encode_cursor(kind: str, last: UUID) -> str:
    """An opaque cursor for the page after `last` in a list of this kind."""
    return base64.urlsafe_b64encode(f"{kind}:".encode() + last.bytes).rstrip(b"=").decode("ascii")


def decode_cursor(kind: str, cursor: str | None) -> UUID | None:
    """Inverse of `encode_cursor`, None for None; Refused for a cursor that this list did not issue."""
    if cursor is None:
        return None
    prefix = f"{kind}:".encode()
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("/cursor", "is not a cursor of this list; start again without a cursor") from error
    if not raw.startswith(prefix) or len(raw) != len(prefix) + 16:
        raise invalid("/cursor", "is not a cursor of this list; start again without a cursor")
    return UUID(bytes=raw[len(prefix) :])


def query_id(pointer: str, text: str | None) -> UUID | None:
    """An id in a query, None for None; Refused when the text is not a UUID."""
    if text is None:
        return None
    value = ids.parse_uuid(text)
    if value is None:
        raise invalid(pointer, "must be a UUID")
    return value
