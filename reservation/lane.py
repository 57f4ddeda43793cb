"""Gateway to the lanes of the reservation Redis: a typed method for each script.

Decides nothing and retries nothing: a script decides, the caller repeats. Error replies of a script (`CORRUPT`,
`MALFORMED`) pass through as `redis.exceptions.ResponseError`; the script wrote nothing then. `reserve` and `lookup` are
missing here: the edge's compiled batcher sends them itself (`hotpath.batcher`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from domain import ids, topology
from domain.orders import OrderEntry, decode_entry, encode_entry, encode_record, pack_key
from domain.outcomes import DefineAnswer, ForgetAnswer, LoadAnswer, RebuildAnswer, RestockAnswer, Transition
from domain.sales import SaleDefinition, Stock
from reservation import scripts
from reservation.payment_marks import MARK_S
from runtime.redis.leases import LeaseLost
from runtime.redis.scripts import Argument, Call, Script, run, run_many

ORDERS_PER_RESTORE = 64  # bound of `restore-2-1n`


class LaneForgot(Exception):
    """A lane does not know a sale that was loaded, or has closed it: the sale must be rebuilt, never loaded again."""

    def __init__(self, *, sale_id: UUID, lane: int) -> None:
        super().__init__(f"lane {lane} does not know sale {sale_id}")
        self.sale_id = sale_id
        self.lane = lane


class RebuildSuperseded(Exception):
    """A lane is not under this rebuild any more: another rebuild took over, or Redis lost the sale again."""

    def __init__(self, *, sale_id: UUID, lane: int) -> None:
        super().__init__(f"lane {lane} does not know this rebuild of sale {sale_id} any more")
        self.sale_id = sale_id
        self.lane = lane


class OrderIds(Protocol):
    """Ids that name an order's keys; `domain.orders.OrderEntry` has them."""

    @property
    def order_id(self) -> UUID:
        """The order; its lane is part of the id."""
        ...

    @property
    def sale_id(self) -> UUID:
        """Sale of the order."""
        ...

    @property
    def user_id(self) -> UUID:
        """Buyer of the order."""
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """Answer to a change of one order: `entry` is the newest version, None for NOT_FOUND."""

    transition: Transition
    entry: OrderEntry | None


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Answer to `forget`, with the number of fields removed."""

    answer: ForgetAnswer
    fields: int = 0


@dataclass(frozen=True, slots=True)
class Closed:
    """Answer to a closing: number of sales closed now, and the lane's sequence before and afterwards."""

    sales: int
    seq_before: int
    seq: int


@dataclass(frozen=True, slots=True)
class RestoredUser:
    """All orders of one user in one lane of a sale under rebuild, and the user's new state."""

    state: bytes
    orders: Sequence[OrderEntry]


@dataclass(frozen=True, slots=True)
class AppliedRestock:
    """A restock that the catalogue has: its idempotency key, SKU index and units."""

    key: str
    sku_index: int
    quantity: int


class Lanes:
    """Scripts of sales in lanes, and of single orders."""

    def __init__(self, redis: Redis) -> None:
        """Uses the client, does not own it."""
        self._redis = redis

    # Publishing and changing a sale

    async def load(self, lane: int, definition: SaleDefinition, stock: Iterable[Stock]) -> LoadAnswer:
        """Give the lane a sale, `stock` by SKU index. A sale that the lane knows stays as it is."""
        args: list[Argument] = [ids.short(definition.sale_id), definition.pack_for_lane()]
        args += [counters.pack() for counters in stock]
        return LoadAnswer(await run(self._redis, scripts.LOAD, _state(lane), args))

    async def define(self, lane: int, definition: SaleDefinition) -> DefineAnswer:
        """Give the lane a newer definition: REPLACED or KEPT; LaneForgot."""
        args = (ids.short(definition.sale_id), definition.pack_for_lane())
        answer = DefineAnswer(await run(self._redis, scripts.DEFINE, _state(lane), args))
        if answer is DefineAnswer.UNKNOWN:
            raise LaneForgot(sale_id=definition.sale_id, lane=lane)
        return answer

    async def restock(self, lane: int, sale_id: UUID, *, sku_index: int, quantity: int, key: str) -> RestockAnswer:
        """Add units once per key: APPLIED, REPEATED or KEY_REUSED; LaneForgot. 0 units only in a sale of many lanes."""
        keys = (topology.lane_state_key(lane), topology.restock_key(lane, sale_id))
        args = (ids.short(sale_id), sku_index, quantity, key)
        answer = RestockAnswer(await run(self._redis, scripts.RESTOCK, keys, args))
        if answer is RestockAnswer.UNKNOWN:
            raise LaneForgot(sale_id=sale_id, lane=lane)
        return answer

    async def forget(self, lane: int, sale_id: UUID) -> Forgotten:
        """Remove definition and stock of a sale that is over; the caller waits until 24 h after its end."""
        number = int(await run(self._redis, scripts.FORGET, _state(lane), (ids.short(sale_id),)))
        if number > 0:
            return Forgotten(ForgetAnswer.FORGOTTEN, number)
        return Forgotten(ForgetAnswer(number))

    # The relay

    async def trim(self, lane: int, *, token: int, upto: int) -> int:
        """Drop the confirmed entries up to sequence `upto`, inclusive; the number dropped.

        Raises LeaseLost when `token` is not the lane's current fencing token.
        """
        keys = (topology.lane_stream_key(lane), topology.lane_lease_key(lane))
        trimmed = int(await run(self._redis, scripts.TRIM, keys, (token, upto)))
        if trimmed < 0:
            raise LeaseLost(f"lane {lane}")
        return trimmed

    # Recovery

    async def close_if_behind(self, lane: int, *, floor: int) -> Closed:
        """Close every sale of a lane with a sequence below `floor` or behind its stream, and raise the sequence."""
        return await self._close(lane, floor, "", 0, "")

    async def close_sale(self, lane: int, sale_id: UUID, *, epoch: int, floor: int = 0, mark: str = "") -> Closed:
        """Close one sale if the lane has it at an epoch before `epoch`; `mark` names the rebuild that closes it."""
        return await self._close(lane, floor, ids.short(sale_id), epoch, mark)

    async def _close(self, lane: int, floor: int, sale: str, epoch: int, mark: str) -> Closed:
        keys = (topology.lane_state_key(lane), topology.lane_stream_key(lane))
        sales, before, seq = await run(self._redis, scripts.CLOSE, keys, (floor, sale, epoch, mark))
        return Closed(int(sales), int(before), int(seq))

    async def restore(self, sale_id: UUID, users: Iterable[RestoredUser], *, mark: str, final_ttl_s: int) -> None:
        """Restore users of a sale under rebuild in one round trip; RebuildSuperseded.

        Final orders live for `final_ttl_s`. A user's calls are bounded; the first one clears the user's hash.
        """
        calls: list[Call] = []
        lanes: list[int] = []
        for user in users:
            lane = ids.lane_of(user.orders[0].order_id)
            for call in _restore_calls(lane, sale_id, user, mark, final_ttl_s):
                calls.append(call)
                lanes.append(lane)
        for lane, answer in zip(lanes, await run_many(self._redis, scripts.RESTORE, calls), strict=True):
            if isinstance(answer, ResponseError):
                raise answer
            if RebuildAnswer(answer) is RebuildAnswer.SUPERSEDED:
                raise RebuildSuperseded(sale_id=sale_id, lane=lane)

    async def reopen(
        self,
        lane: int,
        definition: SaleDefinition,
        stock: Iterable[Stock],
        *,
        floor: int,
        mark: str,
        restocks: Iterable[AppliedRestock] = (),
    ) -> None:
        """End a rebuild in the lane: set stock by SKU, restocks, sequence, definition at once; RebuildSuperseded.

        Transfers of the older epoch are removed: `stock` includes their units.
        """
        sale_id = definition.sale_id
        keys = (
            topology.lane_state_key(lane),
            topology.lane_stream_key(lane),
            topology.restock_key(lane, sale_id),
            topology.transfers_key(lane, sale_id),
        )
        args: list[Argument] = [ids.short(sale_id), mark, floor, definition.pack_for_lane()]
        args += [counters.pack() for counters in stock]
        for restock in restocks:
            args += [restock.key, f"{restock.sku_index}:{restock.quantity}"]
        answer = RebuildAnswer(await run(self._redis, scripts.REOPEN, keys, args))
        if answer is RebuildAnswer.SUPERSEDED:
            raise RebuildSuperseded(sale_id=sale_id, lane=lane)

    # Changes of one order

    async def cancel(self, order: OrderIds) -> Change:
        """The buyer's cancel: a reserved order with a living hold becomes `cancelled`."""
        keys, args = _order_call(order)
        return _change(await run(self._redis, scripts.CANCEL, keys, (*args, order.user_id.bytes)))

    async def settle(self, orders: Sequence[OrderIds]) -> list[Transition | ResponseError]:
        """Payments: reserved orders with a living hold become `paid`, in one round trip.

        Each order that is found has its mark of payments afterwards.

        An error reply stands in the order's place. Raises RedisError when the answers did not arrive; repeating the
        call is harmless.
        """
        calls: list[Call] = []
        for order in orders:
            keys, args = _order_call(order)
            calls.append(((*keys, topology.payment_mark_key(order.order_id)), (*args, MARK_S)))
        return await self._run_changes(scripts.SETTLE, calls)

    async def reject(self, order: OrderIds) -> Change:
        """A reserved order without a unit in PostgreSQL becomes `rejected`; its units are written off."""
        return _change(await run(self._redis, scripts.REJECT, *_order_call(order)))

    async def expire(self, orders: Sequence[OrderIds]) -> list[Transition | ResponseError]:
        """Collect holds past their time in one round trip; an error reply stands in the order's place.

        Raises RedisError when the answers did not arrive; repeating the call is harmless.
        """
        return await self._run_changes(scripts.EXPIRE, [_order_call(order) for order in orders])

    async def _run_changes(self, script: Script, calls: Sequence[Call]) -> list[Transition | ResponseError]:
        answers = await run_many(self._redis, script, calls)
        return [answer if isinstance(answer, ResponseError) else Transition(answer[0]) for answer in answers]


def _state(lane: int) -> tuple[str]:
    return (topology.lane_state_key(lane),)


def _order_call(order: OrderIds) -> tuple[Sequence[bytes | str], tuple[Argument, ...]]:
    keys = topology.order_change_keys(order.order_id, sale_id=order.sale_id, user_id=order.user_id)
    return keys, (ids.short(order.sale_id), order.order_id.bytes)


def _change(answer: tuple[int, bytes]) -> Change:
    transition, entry = answer
    return Change(Transition(transition), decode_entry(entry) if entry else None)


def _restore_calls(lane: int, sale_id: UUID, user: RestoredUser, mark: str, final_ttl_s: int) -> Iterator[Call]:
    user_key = topology.user_key(lane, sale_id, user.orders[0].user_id)
    for start in range(0, len(user.orders), ORDERS_PER_RESTORE):
        keys: list[bytes | str] = [topology.lane_state_key(lane), user_key]
        args: list[Argument] = [ids.short(sale_id), mark, int(start == 0), user.state]
        for order in user.orders[start : start + ORDERS_PER_RESTORE]:
            keys.append(topology.order_key(order.order_id))
            ttl_s = final_ttl_s if order.status.is_final else 0
            args += [pack_key(order.idempotency_key), encode_record(order), encode_entry(order), ttl_s]
        yield keys, args
