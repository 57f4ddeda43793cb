"""One sale over many lanes: moves its units by transfers, and tells each lane how many units are left in all of them.

A step reads all lanes, ends transfers that another process left under way, and then

    1 lend     out of the lanes that have units to spare
    2 credit   the lanes that need them, once
    3 clear    the records of the lending lanes
    4 left     tells the lanes the number of units left

After a crash between two of these, the next step of any process goes on. Two processes at once do no harm: each step
of a transfer happens once (`reservation.transfers`), and a bound of units left is only written to a lane to which no
unit came back since it was read.

The bound counts what no transfer changes: units given to a lane less the units sold there. It is lowered only after a
second reading that shows that no unit came back to any lane in between: so there was a moment at which not more units
were left in all lanes and in transit together. A unit that comes back later can be bought in its own lane at once, in
the other lanes after the next step.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from domain.outcomes import CreditAnswer
from domain.sales import LEFT_UNKNOWN, Elsewhere, SaleDefinition, Stock
from reservation.reading import LaneSale, read_sale_lanes
from reservation.transfers import Bound, Records, Transfer, Transfers, under_way, was_lent
from workers.rebalancer.planning import Place, plan

# A lane keeps units that a refused buyer wants for so long: the buyer repeats after a second (`Retry-After`).
KEPT_S: Final = 1.5
SALES_KEPT: Final = 0.8  # of the weight of sales, from step to step

MOVED = Counter("flashsale_rebalancer_moved_units", "Units that were moved between lanes of sales.")
TRANSFERS = Counter("flashsale_rebalancer_transfers", "Transfers between lanes that were begun.")
RESUMED = Counter("flashsale_rebalancer_resumed", "Transfers that another process had left under way.")

log = structlog.get_logger()


class Rebalancing:
    """`step` is one round. Remembers the sales of each lane, to move units to where they are bought."""

    def __init__(self, redis: Redis, sale: SaleDefinition) -> None:
        """Uses the client, does not own it; works on exactly this epoch of the sale."""
        assert len(sale.lanes) > 1
        self.sale = sale
        self._redis = redis
        self._transfers = Transfers(redis, sale)
        self._sold: dict[tuple[int, int], int] = {}  # by SKU index and lane, at the last step
        self._sales: dict[tuple[int, int], float] = {}  # since then, weighted
        self._kept_until: dict[tuple[int, int], float] = {}
        self._looked: Sequence[LaneSale] = ()
        self.in_transit = 0

    async def step(self) -> bool:
        """One round; whether anything changed since the round before. Raises RedisError and ValueError."""
        lanes = await read_sale_lanes(self._redis, self.sale)
        changed, self._looked = lanes != self._looked, lanes
        if not all(lane.sells(self.sale.epoch) for lane in lanes):
            return False  # a lane is closed for recovery: the rebuild spreads all units anew
        records = await self._transfers.records()
        left_over = under_way(records)
        if left_over:
            RESUMED.inc(len(left_over))
            await self._end(left_over)
            self._looked = ()
            return True  # the counters that were read are old
        moves = list(self._planned(lanes, records))
        lent = await self._lend(moves)
        await self._end(lent)
        await self._tell_left(lanes)
        return changed or bool(lent)

    async def _lend(self, moves: Sequence[Transfer]) -> list[Transfer]:
        answers = await self._transfers.lend(moves)
        _log_errors(answers, self.sale, "lend")
        lent = [
            replace(transfer, units=int(answer))
            for transfer, answer in zip(moves, answers, strict=True)
            if was_lent(answer) and not isinstance(answer, ResponseError)
        ]
        TRANSFERS.inc(len(lent))
        MOVED.inc(sum(transfer.units for transfer in lent))
        return lent

    async def _end(self, transfers: Sequence[Transfer]) -> None:
        """Credit, then clear the credited ones. A lane that was closed meanwhile leaves its transfers as they are."""
        self.in_transit = sum(transfer.units for transfer in transfers)
        answers = await self._transfers.credit(transfers)
        _log_errors(answers, self.sale, "credit")
        arrived = (CreditAnswer.CREDITED, CreditAnswer.REPEATED)
        credited = [transfer for transfer, answer in zip(transfers, answers, strict=True) if answer in arrived]
        _log_errors(await self._transfers.clear(credited), self.sale, "clear")
        self.in_transit -= sum(transfer.units for transfer in credited)

    def _planned(self, lanes: Sequence[LaneSale], records: Mapping[int, Records]) -> Iterable[Transfer]:
        now = time.monotonic()
        for index in range(len(self.sale.items)):
            places = [self._place(index, lane.lane, _stock(lane, index)) for lane in lanes]
            kept = {place.lane for place in places if self._kept_until.get((index, place.lane), 0.0) > now}
            wanting = {place.lane for place in places if place.wanted > place.available}
            for move in plan(places, kept=kept):
                number, _ = records[move.source].lent.get((index, move.destination), (0, 0))
                if move.destination in wanting:
                    self._kept_until[index, move.destination] = now + KEPT_S
                yield Transfer(index, move.source, move.destination, number + 1, move.units)

    def _place(self, index: int, lane: int, stock: Stock) -> Place:
        """The lane's part of one SKU; counts the units sold since the last step."""
        there = stock.elsewhere or Elsewhere()
        sold = stock.reserved + stock.paid + stock.rejected
        more = max(0, sold - self._sold.get((index, lane), sold))
        sales = SALES_KEPT * self._sales.get((index, lane), 0.0) + more
        self._sold[index, lane], self._sales[index, lane] = sold, sales
        return Place(lane, stock.available, there.wanted, sales)

    async def _tell_left(self, lanes: Sequence[LaneSale]) -> None:
        raised: list[Bound] = []
        lowered: list[Bound] = []
        for index in range(len(self.sale.items)):
            stocks = [_stock(lane, index) for lane in lanes]
            left = min(LEFT_UNKNOWN, max(0, sum(stock.unsold for stock in stocks)))
            for lane, stock in zip(lanes, stocks, strict=True):
                there = stock.elsewhere or Elsewhere()
                if there.left != left:
                    bound = Bound(lane.lane, index, there.returns, left)
                    (raised if left > there.left else lowered).append(bound)
        if lowered:
            still = _unreturned(lanes, await read_sale_lanes(self._redis, self.sale))
            lowered = [bound for bound in lowered if bound.sku_index in still]
        _log_errors(await self._transfers.tell_left([*raised, *lowered]), self.sale, "left")


def _stock(lane: LaneSale, index: int) -> Stock:
    stock = lane.stock[index]
    assert stock is not None, "a lane that sells has every SKU"
    return stock


def _unreturned(before: Sequence[LaneSale], after: Sequence[LaneSale]) -> set[int]:
    """SKU indices of which no unit came back to any lane between two readings."""
    still = set(range(len(before[0].stock)))
    for old, new in zip(before, after, strict=True):
        for index, (was, now) in enumerate(zip(old.stock, new.stock, strict=True)):
            if _returns(now) != _returns(was):
                still.discard(index)
    return still


def _returns(stock: Stock | None) -> int | None:
    return None if stock is None or stock.elsewhere is None else stock.elsewhere.returns


def _log_errors(answers: Iterable[object], sale: SaleDefinition, step: str) -> None:
    for answer in answers:
        if isinstance(answer, ResponseError):
            log.error("step of a transfer failed", step=step, sale_id=str(sale.sale_id), error=str(answer))
