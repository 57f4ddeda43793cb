"""Conditional requests (RFC 9110, section 13): the entity tag of a resource is its version. Performs no I/O."""

from __future__ import annotations

import re

from backoffice.web.messages import Call, Refused
from domain.problems import Problem

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'  # RFC 9110, section 8.8.3
_TAGS = re.compile(rf"{_TAG}(?:[ \t]*,[ \t]*{_TAG})*")
_OWN_TAG = re.compile(r'(?<!W/)"([1-9][0-9]{0,8})"')


def entity_tag(version: int) -> str:
    """The strong tag of a version."""
    return f'"{version}"'


def expected_versions(call: Call) -> list[int] | None:
    """Versions that `If-Match` names; None for `*` or without the header. Other tags match no version."""
    header = call.headers.get("if-match", "").strip()
    if header in ("", "*"):
        return None
    return [int(tag) for tag in _OWN_TAG.findall(header)] if _TAGS.fullmatch(header) else []


def required_versions(call: Call) -> list[int] | None:
    """As `expected_versions`; Refused(`precondition_required`) without the header."""
    if not call.headers.get("if-match", "").strip():
        raise Refused(Problem.PRECONDITION_REQUIRED)
    return expected_versions(call)


def is_known(call: Call, version: int) -> bool:
    """Whether the reader has this version, by `If-None-Match`."""
    known = [tag.strip().removeprefix("W/") for tag in call.headers.get("if-none-match", "").split(",")]
    return entity_tag(version) in known or known == ["*"]
