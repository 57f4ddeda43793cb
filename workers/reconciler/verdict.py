"""Verdicts about a sale, and how findings become a verdict. Performs no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

DETAIL_MAX = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """A contradiction. `certain` is false when a step in progress can cause it for a moment: then it counts only if the
    next look finds exactly the same."""

    text: str
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """True: proved. False: violated, see `detail`. None: cannot be judged yet.

    `deep_at_ms`: Redis time at which the oldest part of the deep looks was read; None if one was never read.
    """

    sale_id: UUID
    at_ms: int
    a: bool | None
    b: bool | None
    detail: tuple[str, ...] = field(default=())
    deep_at_ms: int | None = None

    @property
    def is_proved(self) -> bool:
        """Both invariants hold."""
        return self.a is True and self.b is True

    def as_document(self) -> dict[str, Any]:
        """The JSON document kept at `topology.VERDICTS_KEY`."""
        return {
            "sale_id": str(self.sale_id),
            "at_ms": self.at_ms,
            "deep_at_ms": self.deep_at_ms,
            "A": self.a,
            "B": self.b,
            "detail": list(self.detail[:DETAIL_MAX]),
        }


def judge(findings: Iterable[Finding], earlier: frozenset[str]) -> tuple[bool | None, list[str]]:
    """False if a finding is certain or in the last look (`earlier` texts), None if all are doubts, True without any."""
    listed = list(findings)
    proved = [finding.text for finding in listed if finding.certain or finding.text in earlier]
    if proved:
        return False, proved
    return (None, [finding.text for finding in listed]) if listed else (True, [])
