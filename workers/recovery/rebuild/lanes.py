"""Redis's side of a rebuild: the sale in its lanes, closed, restored and reopened, and the document for edges."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import orjson
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, WatchError

from domain import ids, topology
from domain.orders import OrderEntry
from domain.sales import LaneSaleState, SaleDefinition, Stock
from reservation import scripts
from runtime.redis.scripts import run as run_script
from workers.recovery.rebuild.errors import Stuck, Superseded
from workers.recovery.rebuild.records import restore_calls

PUT_ATTEMPTS_MAX = 5
_HEAD = struct.Struct(">BII")


@dataclass(frozen=True, slots=True)
class LaneSale:
    """What one lane knows of the sale; `epoch` is None when it does not know it. `whole`: every SKU's counters are there."""

    epoch: int | None
    closed: bool
    whole: bool

    def is_open(self, epoch: int) -> bool:
        """Whether the lane sells in this epoch."""
        return self.epoch == epoch and not self.closed and self.whole


class LanesSide:
    """Commands on the sale's lanes. `mark` names this run: another run's closing ends this one's right to write."""

    def __init__(self, redis: Redis, sale_id: UUID, mark: str) -> None:
        """Uses the client, does not own it."""
        self._redis = redis
        self._sale = ids.short(sale_id)
        self._sale_id = sale_id
        self._mark = mark

    async def now_ms(self) -> int:
        """Redis time."""
        seconds, microseconds = await self._redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def look(self, sale: SaleDefinition) -> dict[int, LaneSale]:
        """What each lane knows."""
        fields = [topology.definition_field(sale.sale_id)]
        fields += [topology.stock_field(sale.sale_id, index) for index in range(len(sale.items))]
        looks = {}
        for lane in sale.lanes:
            values = cast(list[bytes | None], await self._redis.hmget(topology.lane_state_key(lane), fields))
            if values[0] is None or len(values[0]) < _HEAD.size:
                looks[lane] = LaneSale(None, closed=True, whole=False)
                continue
            state, epoch, _ = _HEAD.unpack_from(values[0])
            looks[lane] = LaneSale(epoch, closed=state == LaneSaleState.CLOSED, whole=None not in values)
        return looks

    async def close(self, lane: int, *, floor: int, epoch: int) -> int:
        """Close the sale under this run's mark; the lane's newest sequence at that moment."""
        keys = (topology.lane_state_key(lane), topology.lane_stream_key(lane))
        answer = await run_script(self._redis, scripts.CLOSE, keys, (floor, self._sale, epoch, self._mark))
        return int(answer[2])

    async def oldest(self, lane: int) -> int | None:
        """Sequence of the oldest entry in the lane's stream; None for an empty one."""
        head: Any = await self._redis.xrange(topology.lane_stream_key(lane), count=1)
        return int(head[0][0].partition(b"-")[0]) if head else None

    async def restore(self, users: Sequence[Sequence[OrderEntry]]) -> None:
        """Restore some users, each with all orders, in one round trip; Superseded."""
        for answer in await self._restore(users):
            if answer != 1:
                if isinstance(answer, Exception):
                    raise answer
                raise Superseded(
                    "Redis does not know this rebuild any more: it lost the sale again, or another one runs"
                )

    async def _restore(self, users: Sequence[Sequence[OrderEntry]]) -> list[Any]:
        answers = await self._evaluate(users)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            await self._redis.script_load(scripts.RESTORE.source)
            answers = await self._evaluate(users)
        return answers

    async def _evaluate(self, users: Sequence[Sequence[OrderEntry]]) -> list[Any]:
        pipeline: Any = self._redis.pipeline(transaction=False)
        for orders in users:
            lane = ids.lane_of(orders[0].order_id)
            user = topology.user_key(lane, self._sale_id, orders[0].user_id)
            for part, args in restore_calls(orders):
                keys = [topology.lane_state_key(lane), user, *(topology.order_key(order.order_id) for order in part)]
                pipeline.execute_command(
                    "EVALSHA", scripts.RESTORE.sha, len(keys), *keys, self._sale, self._mark, *args
                )
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

    async def reopen(
        self,
        sale: SaleDefinition,
        *,
        stocks: Mapping[int, Sequence[Stock]],
        floors: Mapping[int, int],
        restocks: Sequence[tuple[str, int, int]],
    ) -> None:
        """Give every lane its counters and the definition, the first lane (which has the stock) last; Superseded."""
        for place, lane in reversed(list(enumerate(sale.lanes))):
            keys = (
                topology.lane_state_key(lane),
                topology.lane_stream_key(lane),
                topology.restock_key(lane, sale.sale_id),
            )
            args: list[bytes | str | int] = [self._sale, self._mark, floors[lane], sale.pack_for_lane()]
            args += [stock.pack() for stock in stocks[lane]]
            if place == 0:
                for key, index, quantity in restocks:
                    args += [key, f"{index}:{quantity}"]
            if await run_script(self._redis, scripts.REOPEN, keys, args) != 1:
                raise Superseded(f"lane {lane} does not know this rebuild any more")

    async def define(self, sale: SaleDefinition) -> None:
        """Bring a newer version to the lanes; they keep what is newer still."""
        for lane in sale.lanes:
            keys = (topology.lane_state_key(lane),)
            if await run_script(self._redis, scripts.DEFINE, keys, (self._sale, sale.pack_for_lane())) < 0:
                raise Superseded(f"lane {lane} lost the sale again")

    async def announce(self, sale: SaleDefinition) -> None:
        """Put the document unless there is a newer one, list the sale, tell edges."""
        await self._put(sale)
        await self._redis.sadd(topology.SALES_KEY, str(sale.sale_id))
        await self._redis.publish(topology.SALES_CHANNEL, str(sale.sale_id))

    async def _put(self, sale: SaleDefinition) -> None:
        key = topology.sale_key(sale.sale_id)
        async with self._redis.pipeline(transaction=True) as pipeline:
            for _ in range(PUT_ATTEMPTS_MAX):
                await pipeline.watch(key)
                if _is_as_new(cast(bytes | None, await pipeline.get(key)), sale):
                    return
                pipeline.multi()  # type: ignore[no-untyped-call]
                pipeline.set(key, orjson.dumps(sale.as_document()))
                try:
                    await pipeline.execute()
                    return
                except WatchError:
                    continue  # the backoffice put one; ours may be the older one now
        raise Stuck("the sale's document changes all the time")


def _is_as_new(raw: bytes | None, sale: SaleDefinition) -> bool:
    if raw is None:
        return False
    try:
        document = orjson.loads(raw)
        return (int(document["epoch"]), int(document["version"])) >= (sale.epoch, sale.version)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return False  # nobody can read it: put ours
