"""The Redis side of a rebuild: the sale in its lanes, closed, restored and reopened, and its document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from uuid import UUID

from redis.asyncio import Redis

from domain.orders import OrderEntry
from domain.sales import SaleDefinition, Stock, restock_shares
from reservation.documents import DocumentContended, SaleDocuments
from reservation.lane import AppliedRestock, LaneForgot, Lanes, RebuildSuperseded, RestoredUser
from reservation.payment_marks import mark_payments
from reservation.reading import LaneSale, read_oldest_entry, read_sale
from runtime.redis.clock import now_ms
from workers.recovery.rebuild.errors import Stuck, Superseded
from workers.recovery.rebuild.records import FINAL_TTL_S, user_state


class LanesSide:
    """The sale's lanes. `mark` names this run: closing by another run ends this run's right to write."""

    def __init__(self, redis: Redis, sale_id: UUID, mark: str) -> None:
        """Uses the client, does not own it."""
        self._redis = redis
        self._lanes = Lanes(redis)
        self._documents = SaleDocuments(redis)
        self._sale_id = sale_id
        self._mark = mark

    async def now_ms(self) -> int:
        """Redis time."""
        return await now_ms(self._redis)

    async def look(self, sale: SaleDefinition) -> dict[int, LaneSale]:
        """The sale as each of its lanes has it."""
        return {lane: await read_sale(self._redis, lane, sale) for lane in sale.lanes}

    async def close(self, lane: int, *, floor: int, epoch: int) -> int:
        """Close the sale under this run's mark; the lane's newest sequence at that moment."""
        closed = await self._lanes.close_sale(lane, self._sale_id, epoch=epoch, floor=floor, mark=self._mark)
        return closed.seq

    async def oldest(self, lane: int) -> int | None:
        """Sequence of the oldest entry in the lane's stream; None for an empty stream."""
        return await read_oldest_entry(self._redis, lane)

    async def restore(self, users: Sequence[Sequence[OrderEntry]]) -> None:
        """Restore some users, each with all orders, in one round trip; Superseded."""
        restored = [RestoredUser(user_state(orders), orders) for orders in users]
        with _superseded():
            await self._lanes.restore(self._sale_id, restored, mark=self._mark, final_ttl_s=FINAL_TTL_S)

    async def mark_payments(self, order_ids: Sequence[UUID]) -> None:
        """Note in Redis which orders have payments, for their readers."""
        await mark_payments(self._redis, order_ids)

    async def reopen(
        self,
        sale: SaleDefinition,
        *,
        stocks: Mapping[int, Sequence[Stock]],
        floors: Mapping[int, int],
        restocks: Sequence[AppliedRestock],
    ) -> None:
        """Give every lane its counters, its shares of the restocks, the definition, the first lane last; Superseded."""
        count = len(sale.lanes)
        shares = [restock_shares(restock.key, restock.quantity, lanes=count) for restock in restocks]
        for place, lane in reversed(list(enumerate(sale.lanes))):
            applied = [replace(restock, quantity=share[place]) for restock, share in zip(restocks, shares, strict=True)]
            with _superseded():
                await self._lanes.reopen(
                    lane, sale, stocks[lane], floor=floors[lane], mark=self._mark, restocks=applied
                )

    async def define(self, sale: SaleDefinition) -> None:
        """Give the lanes a newer version; a lane with a still newer one keeps it. Superseded."""
        for lane in sale.lanes:
            with _superseded():
                await self._lanes.define(lane, sale)

    async def announce(self, sale: SaleDefinition) -> None:
        """Put the document unless there is a newer one, list the sale, tell edges; Stuck."""
        try:
            await self._documents.announce(sale)
        except DocumentContended as error:
            raise Stuck(f"other processes keep changing the {error}; run the rebuild again") from error


@contextmanager
def _superseded() -> Iterator[None]:
    try:
        yield
    except (LaneForgot, RebuildSuperseded) as error:
        raise Superseded(f"{error}: Redis lost the sale again, or another rebuild runs") from error
