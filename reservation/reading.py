"""Reads the state of lanes: sequences, definitions, stock. Writes nothing and judges nothing."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from redis.asyncio import Redis

from domain import topology
from domain.sales import LaneDefinition, LaneSaleState, SaleDefinition, Stock
from reservation.lane import LaneForgot
from runtime.redis.cluster import run_ids

SEQUENCE_FIELD = "seq"


@dataclass(frozen=True, slots=True)
class LaneSale:
    """One sale as one lane has it. `definition` is None when the lane does not know the sale or cannot decode it.

    `stock` is by SKU index; None for a SKU without counters, and for one with malformed counters (`malformed`).
    """

    lane: int
    is_known: bool
    definition: LaneDefinition | None
    stock: tuple[Stock | None, ...]
    malformed: tuple[int, ...] = ()  # SKU indices

    @property
    def full_stock(self) -> list[Stock] | None:
        """Counters of every SKU; None if any is missing."""
        known = [stock for stock in self.stock if stock is not None]
        return known if len(known) == len(self.stock) else None

    def sells(self, epoch: int) -> bool:
        """Whether the lane has the whole sale in exactly this epoch and has not closed it."""
        if self.problem(epoch) is not None or self.full_stock is None:
            return False
        return self.definition is not None and self.definition.epoch == epoch

    def problem(self, epoch: int) -> str | None:
        """Why the lane cannot sell in this epoch; None if it can. Missing stock is not looked at."""
        if self.definition is None:
            if self.is_known:
                return f"lane {self.lane} has a malformed definition of the sale"
            return f"lane {self.lane} does not know the sale"
        if self.definition.state is LaneSaleState.CLOSED:
            return f"lane {self.lane} has closed the sale"
        if self.definition.epoch < epoch:
            return f"lane {self.lane} has epoch {self.definition.epoch} of {epoch}"
        return None


@dataclass(frozen=True, slots=True)
class LaneState:
    """A lane at one moment: its newest sequence, and the sales asked for."""

    seq: int
    sales: Mapping[UUID, LaneSale]


async def read_lane(redis: Redis, lane: int, sku_counts: Mapping[UUID, int]) -> LaneState:
    """A lane's sequence and some sales by one command, so that all is of one moment.

    `sku_counts`: for each sale the number of its SKUs, to read their stock; 0 reads the definition alone.
    """
    answer = await redis.hmget(topology.lane_state_key(lane), _fields(sku_counts))
    return _lane_state(lane, sku_counts, cast(list[bytes | None], answer))


def _fields(sku_counts: Mapping[UUID, int]) -> list[str]:
    fields = [SEQUENCE_FIELD]
    for sale_id, count in sku_counts.items():
        fields.append(topology.definition_field(sale_id))
        fields += [topology.stock_field(sale_id, index) for index in range(count)]
    return fields


def _lane_state(lane: int, sku_counts: Mapping[UUID, int], answer: Sequence[bytes | None]) -> LaneState:
    values = iter(answer)
    seq = int(next(values) or 0)
    sales = {}
    for sale_id, count in sku_counts.items():
        packed = next(values)
        stock = [next(values) for _ in range(count)]
        sales[sale_id] = LaneSale(
            lane=lane,
            is_known=packed is not None,
            definition=_definition(packed),
            stock=tuple(unpack_stock(counters) for counters in stock),
            malformed=tuple(
                index for index, counters in enumerate(stock) if counters is not None and unpack_stock(counters) is None
            ),
        )
    return LaneState(seq, sales)


async def read_sale(redis: Redis, lane: int, definition: SaleDefinition) -> LaneSale:
    """One sale in one lane, stock included."""
    sale_id = definition.sale_id
    return (await read_lane(redis, lane, {sale_id: len(definition.items)})).sales[sale_id]


async def read_sale_lanes(redis: Redis, definition: SaleDefinition) -> list[LaneSale]:
    """One sale in each of its lanes, in one round trip. Each lane is of one moment, the lanes are not of the same."""
    counts = {definition.sale_id: len(definition.items)}
    pipeline = redis.pipeline(transaction=False)
    for lane in definition.lanes:
        pipeline.hmget(topology.lane_state_key(lane), _fields(counts))
    answers = await pipeline.execute()
    states = [_lane_state(lane, counts, answer) for lane, answer in zip(definition.lanes, answers, strict=True)]
    return [state.sales[definition.sale_id] for state in states]


async def read_stock(redis: Redis, definition: SaleDefinition) -> list[Stock]:
    """Counters of a sale by SKU index, summed over its lanes; LaneForgot."""
    lanes = []
    for there in await read_sale_lanes(redis, definition):
        stock = there.full_stock
        if stock is None:
            raise LaneForgot(sale_id=definition.sale_id, lane=there.lane)
        lanes.append(stock)
    return [Stock.total(counters) for counters in zip(*lanes, strict=True)]


async def read_sequences(redis: Redis, lanes: Collection[int]) -> dict[int, int]:
    """Newest sequence of each lane, in one round trip; 0 for a lane without one."""
    pipeline = redis.pipeline(transaction=False)
    for lane in lanes:
        pipeline.hget(topology.lane_state_key(lane), SEQUENCE_FIELD)
    return {lane: int(seq or 0) for lane, seq in zip(lanes, await pipeline.execute(), strict=True)}


async def read_intact_sequences(redis: Redis, lanes: Collection[int]) -> dict[int, int]:
    """Like `read_sequences`, without the lanes with a damaged sequence: one must not hide the others."""
    pipeline = redis.pipeline(transaction=False)
    for lane in lanes:
        pipeline.hget(topology.lane_state_key(lane), SEQUENCE_FIELD)
    return _intact(lanes, await pipeline.execute(raise_on_error=False))


async def read_run(redis: Redis, lanes: Collection[int]) -> tuple[str, dict[int, int]]:
    """The run ids of the servers that take writes, then `read_intact_sequences`.

    The run ids are read first: a server that is replaced in between is found by the next read.
    """
    return await run_ids(redis), await read_intact_sequences(redis, lanes)


def _intact(lanes: Collection[int], answers: Sequence[Any]) -> dict[int, int]:
    sequences = {}
    for lane, seq in zip(lanes, answers, strict=True):
        if isinstance(seq, Exception):
            if str(seq).startswith("WRONGTYPE"):
                continue
            raise seq
        with contextlib.suppress(ValueError):
            sequences[lane] = int(seq or 0)
    return sequences


async def read_oldest_entry(redis: Redis, lane: int) -> int | None:
    """Sequence of the oldest entry in the lane's stream; None for an empty stream."""
    head: Any = await redis.xrange(topology.lane_stream_key(lane), count=1)
    return int(head[0][0].partition(b"-")[0]) if head else None


def unpack_stock(counters: bytes | None) -> Stock | None:
    """Counters of a stock field; None for an absent and for a malformed field.

    One damaged field must not hide the other sales of its lane.
    """
    try:
        return None if counters is None else Stock.unpack(counters)
    except struct.error:
        return None


def _definition(packed: bytes | None) -> LaneDefinition | None:
    try:
        return None if packed is None else LaneDefinition.unpack(packed)
    except ValueError:
        return None
