"""Lanes that lost data: how far a lane had come by all records, and its closing when Redis shows less.

Rebuilds nothing. Every step may be repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import structlog
from psycopg.rows import TupleRow
from redis.asyncio import Redis

from reservation.lane import Closed, Lanes
from reservation.reading import read_intact_sequences, read_sequences
from runtime.postgres.databases import Pool
from runtime.postgres.sql import load_sql

SHARD_S_MAX = 1.0  # for the record of a shard, while a lane that went back sells
_SQL = load_sql("workers.recovery", "losses.sql")
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PublishedSale:
    """A sale that its lanes must know, as the catalogue has it."""

    sale_id: UUID
    epoch: int
    lanes: tuple[int, ...]


class LaneRecovery:
    """Compares whole lanes with the records of PostgreSQL; `shards` in shard order."""

    def __init__(self, *, redis: Redis, catalogue: Pool, shards: Sequence[Pool]) -> None:
        """Uses the clients, does not own them."""
        self._redis = redis
        self._lanes = Lanes(redis)
        self._catalogue = catalogue
        self._shards = shards
        self.silent_shards: frozenset[int] = frozenset()  # in the last call of `known_floors`

    async def floors(self, lanes: Collection[int]) -> dict[int, int]:
        """For each lane the newest sequence that any shard, the reconciler or the watch has recorded; 0 for none."""
        values = {"lanes": list(lanes)}
        return _highest(
            lanes,
            await asyncio.gather(
                _rows(self._catalogue, "newest_seen", values),
                *(_rows(shard, "newest_stored", values) for shard in self._shards),
            ),
        )

    async def known_floors(self, lanes: Collection[int]) -> dict[int, int]:
        """Like `floors`, without the shards that do not answer within `SHARD_S_MAX`; they are in `silent_shards`.

        Such a floor is too low by the entries of the last second at most, which only a silent shard and no watch has
        recorded: enough to close a lane, not enough to open one.
        """
        values = {"lanes": list(lanes)}
        seen = await _rows(self._catalogue, "newest_seen", values)
        answers = await asyncio.gather(*(self._within_time(shard, values) for shard in self._shards))
        self.silent_shards = frozenset(shard for shard, rows in enumerate(answers) if rows is None)
        return _highest(lanes, [seen, *(rows for rows in answers if rows is not None)])

    async def _within_time(self, shard: Pool, values: Mapping[str, Any]) -> list[TupleRow] | None:
        try:
            async with asyncio.timeout(SHARD_S_MAX):
                return await _rows(shard, "newest_stored", values)
        except (psycopg.OperationalError, psycopg.InterfaceError, OSError, TimeoutError):
            return None

    async def verified(self, lanes: Collection[int]) -> dict[int, int]:
        """For each lane the sequence up to which the reconciler proved it to be stored."""
        rows = await _rows(self._catalogue, "verified", {"lanes": list(lanes)})
        return dict.fromkeys(lanes, 0) | dict(rows)

    async def sequences(self, lanes: Collection[int]) -> dict[int, int]:
        """Sequences in Redis; 0 for a lane without one."""
        return await read_sequences(self._redis, lanes)

    async def intact_sequences(self, lanes: Collection[int]) -> dict[int, int]:
        """Like `sequences`, without the lanes with a damaged sequence."""
        return await read_intact_sequences(self._redis, lanes)

    async def note_seen(self, sequences: Mapping[int, int]) -> None:
        """Record sequences seen in Redis, so that a later loss of entries that no shard has is detected, too."""
        values = {"lanes": list(sequences), "seqs": list(sequences.values())}
        async with self._catalogue.connection() as connection:
            await connection.execute(_SQL["note_seen"], values)

    async def close_lanes_gone_back(
        self,
        lanes: Collection[int],
        *,
        quiet: Mapping[int, int] | None = None,
        missing: Collection[int] = (),
        seen: Mapping[int, int] | None = None,
    ) -> dict[int, Closed]:
        """Close every sale of each lane with a sequence below its floor, and raise the sequence.

        `quiet`: lanes that stood still when they were last read, with their sequence then. If no shard has more, the
        loss includes no unknown entries. `missing`: lanes that do not know a sale which they were given. Such a lane
        without a sequence has lost its data, even if no entry of it was ever recorded.

        `seen`: sequences that the caller has seen itself. With them, a shard that is away closes no lane later than
        another one, and a lane with a damaged sequence is left out; without them, all shards must answer.

        Returns the lanes that had gone back. The floors are read first: Redis had shown them by then, so a lane that
        only moves on meanwhile is not mistaken for one that went back.
        """
        if seen is None:
            floors = await self.floors(lanes)
            sequences = await self.sequences(lanes)
        else:
            known = await self.known_floors(lanes)
            floors = {lane: max(floor, seen.get(lane, 0)) for lane, floor in known.items()}
            sequences = await self.intact_sequences(lanes)
        gone_back = {}
        for lane in sequences:
            is_lost = lane in missing and sequences[lane] == 0
            if sequences[lane] >= floors[lane] and not is_lost:
                continue
            was_quiet = floors[lane] > 0 and (quiet or {}).get(lane) == floors[lane]
            # Record the loss before raising the sequence, which hides it.
            values = {"lane": lane, "found": sequences[lane], "floor": floors[lane], "was_quiet": was_quiet}
            async with self._catalogue.connection() as connection:
                await connection.execute(_SQL["note_loss"], values)
            closed = await self._lanes.close_if_behind(lane, floor=floors[lane])
            log.error(
                "lane went back: its sales are closed, rebuild them",
                lane=lane,
                found=closed.seq_before,
                known=floors[lane],
                closed=closed.sales,
            )
            gone_back[lane] = closed
        return gone_back

    async def published(self, *, kept_s: int, page: int) -> AsyncIterator[list[PublishedSale]]:
        """Sales that lanes must know, the last to end first, in pages of at most this size."""
        last: dict[str, Any] = {"ends_at": None, "id": None}
        while True:
            rows = await _rows(self._catalogue, "published_sales", {"kept_s": kept_s, "limit": page, **last})
            if rows:
                yield [PublishedSale(sale_id, epoch, tuple(lanes)) for sale_id, epoch, lanes, _ in rows]
            if len(rows) < page:
                return
            last = {"ends_at": rows[-1][3], "id": rows[-1][0]}


def _highest(lanes: Collection[int], answers: Iterable[list[TupleRow]]) -> dict[int, int]:
    floors = dict.fromkeys(lanes, 0)
    for rows in answers:
        for lane, seq in rows:
            floors[lane] = max(floors[lane], seq or 0)
    return floors


async def _rows(pool: Pool, block: str, values: Mapping[str, Any]) -> list[TupleRow]:
    async with pool.connection() as connection:
        return await (await connection.execute(_SQL[block], values)).fetchall()
