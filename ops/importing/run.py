"""One import: groups lines into batches, sends them to the backoffice, and counts the results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ops.importing.reading import Line, Unreadable
from ops.importing.sending import ImportFailed

BATCH_ITEMS_MAX = 500
# Half of the largest body that the backoffice accepts.
BATCH_BYTES_MAX = 512 * 1024
ERRORS_MAX = 50


class Sink(Protocol):
    """Receives batches, as `sending.Backoffice` does."""

    def put(self, items: list[dict[str, Any]], *, dry_run: bool, on_error: str) -> list[dict[str, Any]]:
        """The result of each item, in order."""
        ...


@dataclass(slots=True)
class Summary:
    """Results of a file. `errors`: the first 50 refused lines; `stopped`: the rest of the file was skipped."""

    dry_run: bool
    lines: int = 0
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    refused: int = 0
    stopped: bool = False
    errors: list[dict[str, Any]] = field(default_factory=list)
    errors_left_out: int = 0
    failure: str | None = None  # reason why reading the file, or sending it, ended early

    @property
    def failed(self) -> bool:
        """Whether a line was refused, or the import ended early."""
        return self.refused > 0 or self.failure is not None

    def refuse(self, line: int, sku: str | None, reason: str) -> None:
        """Count a line that is not a product, or that the backoffice refused."""
        self.refused += 1
        if len(self.errors) < ERRORS_MAX:
            self.errors.append({"line": line, "sku": sku, "reason": reason})
        else:
            self.errors_left_out += 1


def import_products(
    lines: Iterable[Line], sink: Sink, *, dry_run: bool, stop: bool, progress: Callable[[Summary], None]
) -> Summary:
    """Send all lines; with `stop`, no line after the first refused one.

    When the file or the backoffice fails, earlier lines are imported already. Importing the same file again leaves them
    unchanged and continues.
    """
    return _Import(sink, dry_run=dry_run, stop=stop, progress=progress).run(lines)


class _Import:
    def __init__(self, sink: Sink, *, dry_run: bool, stop: bool, progress: Callable[[Summary], None]) -> None:
        self._sink = sink
        self._stop = stop
        self._progress = progress
        self._summary = Summary(dry_run)
        self._batch: list[Line] = []
        self._bytes = 0

    def run(self, lines: Iterable[Line]) -> Summary:
        summary = self._summary
        try:
            for line in lines:
                summary.lines += 1
                self._take(line)
                if summary.stopped:
                    return summary
            self._flush()
        except ImportFailed as failed:
            summary.failure = str(failed)
        except Unreadable as unreadable:
            summary.failure = str(unreadable)
            try:
                self._flush()
            except ImportFailed as failed:
                summary.failure += f"; {failed}"
        return summary

    def _take(self, line: Line) -> None:
        size = 0 if line.item is None else len(json.dumps(line.item)) + 2
        error = line.error
        if size > BATCH_BYTES_MAX:
            error = f"larger than {BATCH_BYTES_MAX} bytes"
        if error:
            if self._stop:
                self._flush()
                if self._summary.stopped:
                    return
                self._summary.stopped = True
            sku = line.item.get("sku") if line.item is not None else None
            self._summary.refuse(line.number, sku if isinstance(sku, str) else None, error)
            return
        if len(self._batch) == BATCH_ITEMS_MAX or self._bytes + size > BATCH_BYTES_MAX:
            self._flush()
            if self._summary.stopped:
                return
        self._batch.append(line)
        self._bytes += size

    def _flush(self) -> None:
        if not self._batch:
            return
        summary = self._summary
        batch, self._batch, self._bytes = self._batch, [], 0
        items = [line.item for line in batch if line.item is not None]
        on_error = "stop" if self._stop else "skip"
        results = self._sink.put(items, dry_run=summary.dry_run, on_error=on_error)
        for line, result in zip(batch, results, strict=True):
            match result["outcome"]:
                case "created":
                    summary.created += 1
                case "updated":
                    summary.updated += 1
                case "unchanged":
                    summary.unchanged += 1
                case "refused":
                    reason = "; ".join(f"{error['pointer']} {error['detail']}".strip() for error in result["errors"])
                    summary.refuse(line.number, result["sku"], reason)
                    summary.stopped = summary.stopped or self._stop
        self._progress(summary)
