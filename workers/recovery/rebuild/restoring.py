"""Restores users and orders of a closed sale in Redis, from the shards and the dead letters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from uuid import UUID

import structlog

from domain import ids
from domain.messages import MalformedMessage, decode_orders
from domain.orders import MalformedEntry, OrderEntry, decode_entry
from domain.topology import order_queue
from runtime.dead_letters import PAGE_LETTERS_MAX, DeadLetters
from workers.recovery.rebuild.catalogue import SaleLook
from workers.recovery.rebuild.lanes import LanesSide
from workers.recovery.rebuild.records import HOLDING, by_user, entry_of, fits
from workers.recovery.rebuild.report import Report
from workers.recovery.rebuild.shards import ShardsSide

USERS_PER_CALL = 200

log = structlog.get_logger()


class Restoring:
    """One restoration; counts restored orders in the report."""

    def __init__(
        self, look: SaleLook, *, shards: ShardsSide, lanes: LanesSide, letters: DeadLetters, report: Report
    ) -> None:
        """`look`: the sale at the new epoch, behind the closed gate."""
        self._look = look
        self._sale_id = look.definition.sale_id
        self._epoch = look.definition.epoch
        self._indices: Mapping[str, int] = {item.sku: index for index, item in enumerate(look.definition.items)}
        self._shards = shards
        self._lanes = lanes
        self._letters = letters
        self._report = report
        self._dead_of_user: dict[UUID, list[OrderEntry]] = {}

    async def run(self, restored: Callable[[int], None]) -> None:
        """Restore everything; calls `restored` after each shard."""
        dead = await self._dead_letters()
        for shard in range(self._shards.count):
            await self._restore_shard(shard, dead)
            restored(shard)
        await self._restore_dead(dead)

    async def _restore_shard(self, shard: int, dead: dict[UUID, OrderEntry]) -> None:
        """Restore a shard's users; their orders are removed from `dead`."""
        carried: list[OrderEntry] = []
        async for page in self._shards.orders(shard):
            rows = [entry_of(row, sale_id=self._sale_id, epoch=self._epoch, indices=self._indices) for row in page]
            for order in rows:
                dead.pop(order.order_id, None)
            users = list(by_user([*carried, *rows]))
            carried = users.pop()  # the next page may have more of the last user
            await self._restore_users(users)
        if carried:
            await self._restore_users([carried])
        async for order_ids in self._shards.paid_orders(shard):
            await self._lanes.mark_payments(order_ids)

    async def _restore_users(self, users: list[list[OrderEntry]]) -> None:
        for start in range(0, len(users), USERS_PER_CALL):
            await self._lanes.restore(users[start : start + USERS_PER_CALL])
        self._report.tally.users += len(users)
        for orders in users:
            for order in orders:
                self._report.tally.add(order)

    async def _dead_letters(self) -> dict[UUID, OrderEntry]:
        """Orders of the sale in the dead letters, each at its newest version there."""
        found: dict[UUID, OrderEntry] = {}
        for shard in range(self._shards.count):
            cursor: str | None = None
            while True:
                letters, cursor = await self._letters.list(order_queue(shard), cursor=cursor, limit=PAGE_LETTERS_MAX)
                for letter in letters:
                    for order in _orders_in(letter.body):
                        known = found.get(order.order_id)
                        if self._may_be_restored(order) and (known is None or known.version < order.version):
                            found[order.order_id] = order
                if cursor is None:
                    break
        return found

    def _may_be_restored(self, order: OrderEntry) -> bool:
        """Whether an order is of this sale, as one of its lanes could have accepted it.

        A letter may hold an entry that a lane of another sale or a stranger made. Such an entry holds no units here,
        and its lane is not under this rebuild.
        """
        if order.sale_id != self._sale_id:
            return False
        of_a_lane = ids.lane_of(order.order_id) in self._look.definition.lanes
        of_the_items = all(self._indices.get(line.sku) == line.sku_index for line in order.lines)
        if not (of_a_lane and of_the_items and order.lines):
            log.warning("dead letter is not of a lane or an item of the sale", order_id=str(order.order_id))
            return False
        return True

    async def _restore_dead(self, dead: Mapping[UUID, OrderEntry]) -> None:
        """Dead letters hold their units while they may be replayed, if there are units left and their key is free."""
        report = self._report
        for order_id in sorted(dead, key=lambda order_id: order_id.int):
            order = replace(dead[order_id], epoch=self._epoch)
            if order.status not in HOLDING:
                continue
            shard, rows = await self._shards.orders_of_user(order.user_id)
            stored = [entry_of(row, sale_id=self._sale_id, epoch=self._epoch, indices=self._indices) for row in rows]
            key_is_free = all(order.idempotency_key != other.idempotency_key for other in stored)
            if not key_is_free or not fits(order, self._look.stock, report.tally):
                report.dead_letters_left_out += 1
                log.warning("dead letter holds nothing", order_id=str(order_id), shard=shard, key_is_free=key_is_free)
                continue
            earlier = self._dead_of_user.setdefault(order.user_id, [])
            earlier.append(order)
            await self._lanes.restore([[*stored, *earlier]])
            report.tally.add(order)
            report.dead_letters += 1


def _orders_in(body: bytes) -> list[OrderEntry]:
    """Orders of a dead letter without the malformed ones."""
    orders: list[OrderEntry] = []
    try:
        entries = decode_orders(body)
    except MalformedMessage:
        log.warning("a dead letter is malformed: it holds nothing")
        return orders
    for entry in entries:
        try:
            orders.append(decode_entry(entry.entry))
        except MalformedEntry:
            log.warning("an entry of a dead letter is malformed: it holds nothing", lane_seq=entry.lane_seq)
    return orders
