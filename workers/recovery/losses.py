"""Lanes that went back: how far a lane had come by all that is known, and its closing when Redis shows less.

Rebuilds nothing. Every step may be repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from domain import topology
from reservation import scripts
from runtime.postgres.sql import load_sql
from runtime.redis.scripts import run as run_script

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]

_SQL = load_sql(__package__, "losses.sql")
log = structlog.get_logger()


class LaneRecovery:
    """Looks at lanes as a whole; `shards` in shard order."""

    def __init__(self, *, redis: Redis, catalogue: Pool, shards: Sequence[Pool]) -> None:
        """Uses the clients, does not own them."""
        self._redis = redis
        self._catalogue = catalogue
        self._shards = shards

    async def floors(self, lanes: Collection[int]) -> dict[int, int]:
        """For each lane the newest sequence that any shard, the reconciler or its watch knows; 0 for none."""
        floors = dict.fromkeys(lanes, 0)
        values = {"lanes": list(lanes)}
        answers = await asyncio.gather(
            _rows(self._catalogue, "newest_seen", values),
            *(_rows(shard, "newest_stored", values) for shard in self._shards),
        )
        for rows in answers:
            for lane, seq in rows:
                floors[lane] = max(floors[lane], seq or 0)
        return floors

    async def verified(self, lanes: Collection[int]) -> dict[int, int]:
        """How far the reconciler proved each lane to be stored."""
        rows = await _rows(self._catalogue, "verified", {"lanes": list(lanes)})
        return dict.fromkeys(lanes, 0) | dict(rows)

    async def sequences(self, lanes: Collection[int]) -> dict[int, int]:
        """What Redis shows of each lane; 0 for a lane without a sequence."""
        pipeline = self._redis.pipeline(transaction=False)
        for lane in lanes:
            pipeline.hget(topology.lane_state_key(lane), "seq")
        return {lane: int(seq or 0) for lane, seq in zip(lanes, await pipeline.execute(), strict=True)}

    async def note_seen(self, sequences: Mapping[int, int]) -> None:
        """Remember what Redis showed, so that a later loss is known even of what no shard had stored."""
        values = {"lanes": list(sequences), "seqs": list(sequences.values())}
        async with self._catalogue.connection() as connection:
            await connection.execute(_SQL["note_seen"], values)

    async def close_lanes_gone_back(
        self, lanes: Collection[int], *, quiet: Mapping[int, int] | None = None, missing: Collection[int] = ()
    ) -> dict[int, tuple[int, int]]:
        """Close every sale of each lane that shows less than it did, and raise its sequence.

        `quiet`: lanes that stood still when they were last looked at, with their sequence then. If no shard has more,
        nothing unknown was lost with them.
        `missing`: lanes that do not know a sale they were given: such a lane is lost even if nobody saw an entry of it.
        The lanes that had gone back, with (sequence found, sequence now). The floors are read first: whatever is known
        then, the lane has shown before, so a lane that only moved on meanwhile is not mistaken.
        """
        floors = await self.floors(lanes)
        sequences = await self.sequences(lanes)
        gone_back = {}
        for lane in lanes:
            is_lost = lane in missing and sequences[lane] == 0
            if sequences[lane] >= floors[lane] and not is_lost:
                continue
            was_quiet = floors[lane] > 0 and (quiet or {}).get(lane) == floors[lane]
            # The loss is noted before the sequence that shows it is raised.
            values = {"lane": lane, "found": sequences[lane], "floor": floors[lane], "was_quiet": was_quiet}
            async with self._catalogue.connection() as connection:
                await connection.execute(_SQL["note_loss"], values)
            keys = (topology.lane_state_key(lane), topology.lane_stream_key(lane))
            closed, found, seq = await run_script(self._redis, scripts.CLOSE, keys, (floors[lane], "", 0, ""))
            log.error("lane went back: its sales are closed", lane=lane, found=found, known=floors[lane], closed=closed)
            gone_back[lane] = (int(found), int(seq))
        return gone_back

    async def published(self, *, kept_s: int, limit: int) -> list[tuple[Any, int, tuple[int, ...]]]:
        """(id, epoch, lanes) of sales that lanes must know."""
        rows = await _rows(self._catalogue, "published_sales", {"kept_s": kept_s, "limit": limit})
        return [(sale_id, epoch, tuple(lanes)) for sale_id, epoch, lanes in rows]


async def _rows(pool: Pool, block: str, values: Mapping[str, Any]) -> list[TupleRow]:
    async with pool.connection() as connection:
        return await (await connection.execute(_SQL[block], values)).fetchall()
