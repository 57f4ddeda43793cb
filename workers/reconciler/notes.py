"""Removes the shards' notes of dead letters that are not needed any more, a page at each deep look.

    the place is stored                        the letter was replayed: the note is deleted
    the letter is there, or was replayed       the note stays
    the entry waits for a grant                the note stays
    the letter was there and is gone           it was deleted: the place is given up in the catalogue, the note deleted
    the letter was never seen, for a day       as well: it was deleted before the next look
    the note names no letter                   the note stays: a release before the shard's migration 11 made it

A place that is given up stays accounted for. If the entry was a change of an order that no shard has, its sale has lost
it, and invariant B shows that.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import structlog

from domain.orders import MalformedEntry, decode_entry
from workers.reconciler.reading import Source

NOTES_PER_PAGE: Final = 1_000
UNSEEN_S_MAX: Final = 24 * 3600.0  # a replayed letter is remembered as long

log = structlog.get_logger()


class Notes:
    """The notes of one shard."""

    def __init__(self, shard: Source, catalogue: Source) -> None:
        """Uses both, owns none."""
        self._shard = shard
        self._catalogue = catalogue
        self._after = (-1, 0)

    async def sweep(self) -> int:
        """Look at the next page; the number of notes deleted. Raises Away. Every step may be repeated."""
        lane, lane_seq = self._after
        page = await self._shard.rows("read_notes", {"lane": lane, "lane_seq": lane_seq, "rows_max": NOTES_PER_PAGE})
        self._after = (page[-1][0], page[-1][1]) if len(page) == NOTES_PER_PAGE else (-1, 0)
        if not page:
            return 0
        identities = sorted({bytes(row[2]) for row in page if row[2] is not None})
        exists: set[bytes] = set()
        replayed: set[bytes] = set()
        for identity, is_there in await self._catalogue.rows("read_letters", {"identities": identities}):
            (exists if is_there else replayed).add(bytes(identity))
        seen, stored, deleted = [], [], []
        for row in page:
            identity, was_seen, is_stored, is_waiting, age_s = row[2], row[3], row[7], row[8], row[10]
            letter = bytes(identity) if identity is not None else None
            if is_stored:
                stored.append(row)
            elif letter in exists:
                if not was_seen:
                    seen.append(row)
            elif letter is None or letter in replayed or is_waiting:
                continue
            elif was_seen or age_s > UNSEEN_S_MAX:
                deleted.append(row)
        if seen:
            await self._shard.rows("mark_seen", _places(seen))
        if deleted:
            await self._give_up(deleted)
        if stored or deleted:
            gone = [*stored, *deleted]
            await self._shard.rows("delete_notes", {**_places(gone), "identities": [row[2] for row in gone]})
        return len(stored) + len(deleted)

    async def _give_up(self, rows: list[Any]) -> None:
        """In the catalogue first: after a crash in between, the note is still there."""
        lost = [_loss(row) for row in rows]
        values = {
            **_places(rows),
            "sale_ids": [sale_id for sale_id, _ in lost],
            "order_ids": [order_id for _, order_id in lost],
        }
        await self._catalogue.rows("give_up", values)
        for row in rows:
            log.warning("a deleted dead letter is given up", shard=self._shard.part, lane=row[0], lane_seq=row[1])


def _places(rows: list[Any]) -> dict[str, Any]:
    return {"lanes": [row[0] for row in rows], "lane_seqs": [row[1] for row in rows]}


def _loss(row: Any) -> tuple[UUID | None, UUID | None]:
    """Sale and order that lose a change with this entry; None if it is no valid order, or an older version."""
    sale_id, order_id, entry, stored_version = row[4], row[5], row[6], row[9]
    if entry is None:
        return None, None
    try:
        version = decode_entry(bytes(entry)).version
    except MalformedEntry:
        return None, None
    return (sale_id, order_id) if version > stored_version else (None, None)
