"""Transfers of units between the lanes of a sale: a typed method for each step, and the records of each lane.

A transfer has an id: epoch, SKU, lending lane, receiving lane, number. Its steps are three scripts:

    lend      lending lane     available - n, lent + n, the transfer is recorded
    credit    receiving lane   available + n, borrowed + n, the number is remembered
    clear     lending lane     the record has no units any more; the next number may be lent

Between two lanes one transfer of a SKU is under way at a time, so the receiving lane needs to remember one number of
each lane. Each step may be repeated at any time, by any process, also long after the transfer ended: it then has no
effect. Decides nothing about where units should be (`workers.rebalancer.planning`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from domain import ids, topology
from domain.outcomes import ClearAnswer, CreditAnswer, LeftAnswer, LendAnswer
from domain.sales import SaleDefinition
from reservation import scripts
from runtime.redis.scripts import Call, Script, run_many


@dataclass(frozen=True, slots=True)
class Transfer:
    """Units of one SKU on their way from one lane of a sale to another."""

    sku_index: int
    source: int
    destination: int
    number: int
    units: int


@dataclass(frozen=True, slots=True)
class Records:
    """A lane's records of a sale, by SKU index and other lane.

    `lent`: number and units of the newest transfer out of the lane, 0 units once it is cleared. `credited`: number of
    the newest transfer into the lane.
    """

    lent: Mapping[tuple[int, int], tuple[int, int]]
    credited: Mapping[tuple[int, int], int]


@dataclass(frozen=True, slots=True)
class Bound:
    """The units left of a SKU, to be told to a lane that was read at this number of returns."""

    lane: int
    sku_index: int
    returns: int
    left: int


class Transfers:
    """The steps of one sale's transfers, many at a time: each method is one round trip.

    Answers are in the order of the arguments; an error reply of a script stands in its place.
    """

    def __init__(self, redis: Redis, sale: SaleDefinition) -> None:
        """Uses the client, does not own it. Every step is of the sale's epoch."""
        self._redis = redis
        self._sale = sale
        self._short = ids.short(sale.sale_id)

    async def records(self) -> dict[int, Records]:
        """The records of each lane. ValueError for a malformed one."""
        return await read_records(self._redis, self._sale)

    async def lend(self, transfers: Sequence[Transfer]) -> list[int | ResponseError]:
        """Take the units out of their lanes; the number lent of each, at most `units`, or 0 or less (`LendAnswer`)."""
        return await self._run(scripts.LEND, [self._lend_call(transfer) for transfer in transfers])

    async def credit(self, transfers: Sequence[Transfer]) -> list[CreditAnswer | ResponseError]:
        """Add the units to the lanes that get them, once."""
        answers = await self._run(scripts.CREDIT, [self._credit_call(transfer) for transfer in transfers])
        return [answer if isinstance(answer, ResponseError) else CreditAnswer(answer) for answer in answers]

    async def clear(self, transfers: Sequence[Transfer]) -> list[ClearAnswer | ResponseError]:
        """Record that the units have arrived. Only after `credit` has answered CREDITED or REPEATED."""
        answers = await self._run(scripts.CLEAR, [self._clear_call(transfer) for transfer in transfers])
        return [answer if isinstance(answer, ResponseError) else ClearAnswer(answer) for answer in answers]

    async def tell_left(self, bounds: Sequence[Bound]) -> list[LeftAnswer | ResponseError]:
        """Tell lanes how many units are left in all of them."""
        calls: list[Call] = [
            (
                (topology.lane_state_key(bound.lane),),
                (self._short, self._sale.epoch, bound.sku_index, bound.returns, bound.left),
            )
            for bound in bounds
        ]
        answers = await self._run(scripts.LEFT, calls)
        return [answer if isinstance(answer, ResponseError) else LeftAnswer(answer) for answer in answers]

    async def _run(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        return await run_many(self._redis, script, calls) if calls else []

    def _lend_call(self, transfer: Transfer) -> Call:
        args = (self._short, self._sale.epoch, transfer.sku_index, transfer.destination)
        return self._keys(transfer.source), (*args, transfer.number, transfer.units)

    def _credit_call(self, transfer: Transfer) -> Call:
        args = (self._short, self._sale.epoch, transfer.sku_index, transfer.source)
        return self._keys(transfer.destination), (*args, transfer.number, transfer.units)

    def _clear_call(self, transfer: Transfer) -> Call:
        args = (self._short, self._sale.epoch, transfer.sku_index, transfer.destination)
        return self._keys(transfer.source), (*args, transfer.number)

    def _keys(self, lane: int) -> tuple[str, str]:
        return topology.lane_state_key(lane), topology.transfers_key(lane, self._sale.sale_id)


async def read_records(redis: Redis, sale: SaleDefinition) -> dict[int, Records]:
    """The records of each lane of a sale, in one round trip. ValueError for a malformed one."""
    pipeline = redis.pipeline(transaction=False)
    for lane in sale.lanes:
        pipeline.hgetall(topology.transfers_key(lane, sale.sale_id))
    answers = cast(list[dict[bytes, bytes]], await pipeline.execute())
    return {lane: decode_records(answer) for lane, answer in zip(sale.lanes, answers, strict=True)}


def was_lent(answer: int | ResponseError) -> bool:
    """Whether the answer of `lend` is a number of units."""
    return not isinstance(answer, ResponseError) and answer >= LendAnswer.LENT


def decode_records(fields: Mapping[bytes, bytes]) -> Records:
    """Decode a lane's hash of transfers; ValueError for a malformed field."""
    lent: dict[tuple[int, int], tuple[int, int]] = {}
    credited: dict[tuple[int, int], int] = {}
    for name, value in fields.items():
        kind, index, lane = name.split(b":")
        place = (int(index), int(lane))
        if kind == b"o":
            number, units = value.split(b":")
            lent[place] = (int(number), int(units))
        elif kind == b"i":
            credited[place] = int(value)
        else:
            raise ValueError(f"not a record of a transfer: {name!r}")
    return Records(lent, credited)


def under_way(records: Mapping[int, Records]) -> list[Transfer]:
    """Transfers that are not cleared: lent, perhaps credited."""
    return [
        Transfer(index, source, destination, number, units)
        for source, there in records.items()
        for (index, destination), (number, units) in there.lent.items()
        if units
    ]


def uncredited(records: Mapping[int, Records]) -> list[Transfer]:
    """Transfers whose units are in no lane."""
    return [
        transfer
        for transfer in under_way(records)
        if records[transfer.destination].credited.get((transfer.sku_index, transfer.source), 0) < transfer.number
    ]
