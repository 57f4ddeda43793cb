"""The rebuild of one sale, from closing to reopening. Every step may be repeated; a run that was killed is run again.

    1 epoch      catalogue: epoch + 1, stage `closed`            compare-and-set, one transaction
    2 close      each lane: `close-2` with this run's mark       nothing of the sale moves from here on
    3 drain      wait: streams relayed, fences through every shard's queue, retries empty
    4 gate       each shard: entries of older epochs that are not stored charge nothing any more; stage `counted`
    5 gaps       what lanes lost is noted, so that invariant B says so
    6 restore    each user's hash and orders, from the shards and the dead letters
    7 reopen     stage `reopening`; stock, restocks, sequence and definition in one script a lane
    8 announce   restocks marked, document, message to edges; stage `done`

Counting is right because of the gate, not because of the waiting: a straggler that comes after it is stored as rejected.
The waiting keeps accepted orders from becoming stragglers. Other sales of the same lanes go on all the time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import structlog

from domain.messages import FENCE_HEADER, MalformedMessage, decode_orders, encode_orders
from domain.orders import MalformedEntry, OrderEntry, OrderStatus, decode_entry
from domain.topology import order_queue
from runtime.dead_letters import PAGE_LETTERS_MAX, DeadLetters
from runtime.queue import Queue, QueueFull
from workers.recovery.losses import LaneRecovery
from workers.recovery.rebuild.catalogue import CatalogueSide, Loss, SaleLook
from workers.recovery.rebuild.errors import Healthy, NotPublished, Stuck, Superseded
from workers.recovery.rebuild.lanes import LanesSide
from workers.recovery.rebuild.records import Tally, by_user, entry_of, fits, gaps, lane_stocks
from workers.recovery.rebuild.shards import ShardsSide

POLL_S = 0.05
FENCE_AGAIN_S = 3.0  # a fence that a lost queue swallowed is sent again
QUIET_S_MAX = 20.0
USERS_PER_CALL = 200
PUSHES_MAX = 5
LOST_RANGES_SHOWN = 100
_HOLDING = (OrderStatus.RESERVED, OrderStatus.PAID)

log = structlog.get_logger()


@dataclass(slots=True)
class Report:
    """What a rebuild did, for people and programs."""

    sale_id: UUID
    epoch: int = 0
    tally: Tally = field(default_factory=Tally)
    skus: list[dict[str, Any]] = field(default_factory=list)
    lane_seq: dict[int, int] = field(default_factory=dict)
    restocks: int = 0
    dead_letters: int = 0
    dead_letters_left_out: int = 0
    quiet: bool = True
    lost: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    took_s: float = 0.0

    def as_document(self) -> dict[str, Any]:
        """JSON members. `lost`: inclusive ranges of lane sequences that were accepted and are nowhere any more."""
        lanes = [
            {
                "lane": lane,
                "entries": sum(last - first + 1 for first, last in ranges),
                "ranges": [list(bounds) for bounds in ranges[:LOST_RANGES_SHOWN]],
            }
            for lane, ranges in sorted(self.lost.items())
        ]
        return {
            "sale_id": str(self.sale_id),
            "epoch": self.epoch,
            "users": self.tally.users,
            "orders": dict(sorted(self.tally.orders.items())),
            "skus": self.skus,
            "lane_seq": {str(lane): seq for lane, seq in sorted(self.lane_seq.items())},
            "restocks": self.restocks,
            "dead_letters": self.dead_letters,
            "dead_letters_left_out": self.dead_letters_left_out,
            "queue_was_quiet": self.quiet,
            "lost": lanes,
            "took_s": round(self.took_s, 3),
        }


class Rebuild:
    """One run for one sale."""

    def __init__(
        self,
        sale_id: UUID,
        *,
        catalogue: CatalogueSide,
        shards: ShardsSide,
        lanes: LanesSide,
        recovery: LaneRecovery,
        queue: Queue,
        letters: DeadLetters,
        wait_s: float,
        kept_s: int,
    ) -> None:
        """`wait_s`: how long each thing that others must do is waited for; `kept_s`: how long Redis has ended sales."""
        self._sale_id = sale_id
        self._catalogue = catalogue
        self._shards = shards
        self._lanes = lanes
        self._recovery = recovery
        self._queue = queue
        self._letters = letters
        self._wait_s = wait_s
        self._kept_ms = kept_s * 1000
        self._report = Report(sale_id)
        self._dead_of_user: dict[UUID, list[OrderEntry]] = {}

    async def run(self, *, force: bool) -> Report:
        """Rebuild, or finish what an earlier run began. Raises RebuildError, and what the servers' clients raise."""
        began = time.monotonic()
        look = await self._catalogue.sale()
        known = await self._lanes.look(look.definition)
        missing = [lane for lane, there in known.items() if there.epoch is None]
        over = await self._lanes.now_ms() >= look.definition.ends_at_ms + self._kept_ms
        # However late: what is still reserved can only end by its lane, and what a lane has closed only leaves it reopened.
        if over and len(missing) == len(known) and not await self._shards.holds():
            raise NotPublished("the sale ended so long ago that it has left Redis: there is nothing to rebuild")
        await self._recovery.close_lanes_gone_back(look.definition.lanes, missing=missing)
        if not await self._is_reopened(look, force=force):
            look = await self._begin(look)
            await self._rebuild(look)
        await self._announce(look.definition.epoch)
        self._report.epoch = look.definition.epoch
        self._report.lost = await self._catalogue.lost(look.definition.lanes)
        self._report.took_s = time.monotonic() - began
        return self._report

    async def _is_reopened(self, look: SaleLook, *, force: bool) -> bool:
        """Whether all lanes sell in the catalogue's epoch: then only the end of an earlier run is missing, or nothing."""
        sale = look.definition
        lanes = await self._lanes.look(sale)
        if not all(lane.is_open(sale.epoch) for lane in lanes.values()):
            return False
        unfinished = await self._catalogue.stage(sale.epoch) not in (None, "done")
        if not unfinished and not force:
            raise Healthy("every lane knows the sale at its epoch: nothing to rebuild (--force does it all the same)")
        return unfinished

    async def _begin(self, look: SaleLook) -> SaleLook:
        """Step 1, unless an earlier run took it and no lane can have sold in its epoch."""
        epoch = look.definition.epoch
        if await self._catalogue.stage(epoch) not in ("closed", "counted"):
            epoch = await self._catalogue.raise_epoch(epoch)
        self._step("epoch", epoch=epoch)
        return await self._catalogue.sale()

    async def _rebuild(self, look: SaleLook) -> None:
        sale = look.definition
        floors = await self._recovery.floors(sale.lanes)
        newest = {lane: await self._lanes.close(lane, floor=floors[lane], epoch=sale.epoch) for lane in sale.lanes}
        self._step("closed", lane_seq=newest)
        for lane, seq in newest.items():
            await self._until(lambda lane=lane, seq=seq: self._is_relayed(lane, seq), f"lane {lane} is not relayed")  # type: ignore[misc]
        self._step("relayed")
        for _ in range(2):
            # The second one also waits for what another writer of the shard had in hand during the first.
            await self._fence()
            self._report.quiet = await self._is_quiet_in_time(newest)
        self._step("drained", quiet=self._report.quiet)
        await self._shards.close_gate(sale.epoch, [item.sku for item in sale.items])
        await self._catalogue.set_stage(sale.epoch, "counted")
        self._step("counted")
        await self._reject_waiting(sale.lanes)
        if not self._report.quiet:
            # Who still waited for a grant is rejected by the gate at the next attempt.
            self._report.quiet = await self._is_quiet_in_time(newest)
        if self._report.quiet:
            for loss in await self._catalogue.losses(sale.lanes):
                await self._settle(loss)
        await self._restore(look)
        await self._reopen(sale.epoch)

    # Draining

    async def _until(self, holds: Callable[[], Awaitable[bool]], problem: str) -> None:
        deadline = time.monotonic() + self._wait_s
        while not await holds():
            if time.monotonic() >= deadline:
                raise Stuck(f"{problem} after {self._wait_s:.0f} s; the sale stays closed, run this again")
            await asyncio.sleep(POLL_S)

    async def _is_relayed(self, lane: int, seq: int) -> bool:
        oldest = await self._lanes.oldest(lane)
        return oldest is None or oldest > seq

    async def _fence(self) -> None:
        """Send a fence through every shard's queue and wait until each writer has noted it."""
        fence = uuid4()
        sent_at = -FENCE_AGAIN_S

        async def passed() -> bool:
            nonlocal sent_at
            noted = await self._shards.fenced_by(fence)
            if time.monotonic() - sent_at >= FENCE_AGAIN_S:
                await self._send_fence(fence, [shard for shard, is_there in enumerate(noted) if not is_there])
                sent_at = time.monotonic()
            return all(noted)

        await self._until(passed, "a shard's writer did not acknowledge the fence")
        self._step("fenced")

    async def _send_fence(self, fence: UUID, shards: list[int]) -> None:
        for shard in shards:
            try:
                await self._queue.publish(
                    order_queue(shard),
                    b"",
                    message_id=f"fence-{fence}",
                    headers={FENCE_HEADER: f"{self._sale_id}:{fence}"},
                )
            except QueueFull:
                log.warning("no room for the fence yet", shard=shard)

    async def _waiting(self, lanes: Sequence[int]) -> list[tuple[int, int, int, bytes]]:
        """(shard, lane, sequence, entry) of the sale's orders that are noted as waiting for a grant."""
        return [
            (shard, *noted)
            for shard in range(self._shards.count)
            for noted in await self._shards.waiting(shard, lanes)
            if decode_entry(noted[2]).sale_id == self._sale_id
        ]

    async def _reject_waiting(self, lanes: Sequence[int]) -> None:
        """Bring orders that waited for a grant to the gate, also if a lost queue took their messages along."""
        for shard, lane, seq, entry in await self._waiting(lanes):
            body = encode_orders(lane, [(seq, entry)])
            try:
                await self._queue.publish(order_queue(shard), body, message_id=f"{lane}-{seq}-again")
            except QueueFull:
                raise Stuck(f"the queue of shard {shard} is full; the sale stays closed, run this again") from None

        async def none_waits() -> bool:
            return not await self._waiting(lanes)

        await self._until(none_waits, "orders that waited for a grant are not stored as rejected")

    async def _is_quiet_in_time(self, newest: dict[int, int]) -> bool:
        """Whether nothing of the lanes is on its way any more: no retry, no message, or no place missing."""
        deadline = time.monotonic() + min(self._wait_s, QUIET_S_MAX)
        queues = [order_queue(shard) for shard in range(self._shards.count)]
        while True:
            # The barrier covers messages in the hands of writers, the depth those that writers published in turn.
            passed = [await self._queue.barrier(queue, wait_s=0) for queue in queues]
            depths = [await self._queue.depth(queue) for queue in queues]
            empty = all(depth.messages == depth.retrying == 0 for depth in depths)
            if (all(passed) and empty) or await self._is_complete(newest):
                return True
            if time.monotonic() >= deadline:
                log.warning("the queue is not quiet", depths=[(depth.messages, depth.retrying) for depth in depths])
                return False
            await asyncio.sleep(POLL_S)

    async def _is_complete(self, newest: dict[int, int]) -> bool:
        verified = await self._recovery.verified(newest)
        for lane, seq in newest.items():
            async for after, upto, places in self._shards.places(lane, after=verified[lane], upto=seq):
                if gaps(places, after=after, upto=upto):
                    return False
        return True

    # Gaps

    async def _settle(self, loss: Loss) -> None:
        """Note which entries of a lane that went back are nowhere."""
        ranges: list[tuple[int, int]] = []
        known = (await self._catalogue.lost((loss.lane,))).get(loss.lane, [])
        async for after, upto, places in self._shards.places(
            loss.lane, after=max(loss.found, loss.verified), upto=loss.floor
        ):
            for first, last in known:
                places.update(range(max(first, after + 1), min(last, upto) + 1))
            ranges += gaps(places, after=after, upto=upto)
        await self._catalogue.note_lost(loss, ranges)
        self._step("settled", lane=loss.lane, lost=sum(last - first + 1 for first, last in ranges))

    # Restoring

    async def _restore(self, look: SaleLook) -> None:
        sale, tally = look.definition, self._report.tally
        indices = {item.sku: index for index, item in enumerate(sale.items)}
        dead = await self._dead_letters()
        for shard in range(self._shards.count):
            carried: list[OrderEntry] = []
            async for page in self._shards.orders(shard):
                rows = [entry_of(row, sale_id=self._sale_id, epoch=sale.epoch, indices=indices) for row in page]
                for order in rows:
                    dead.pop(order.order_id, None)
                users = list(by_user([*carried, *rows]))
                carried = users.pop()  # the next page may have more of the last user
                await self._restore_users(users)
            if carried:
                await self._restore_users([carried])
            self._step("restored", shard=shard, orders=sum(tally.orders.values()))
        await self._restore_dead(dead, look, indices)

    async def _restore_users(self, users: list[list[OrderEntry]]) -> None:
        for start in range(0, len(users), USERS_PER_CALL):
            await self._lanes.restore(users[start : start + USERS_PER_CALL])
        self._report.tally.users += len(users)
        for orders in users:
            for order in orders:
                self._report.tally.add(order)

    async def _dead_letters(self) -> dict[UUID, OrderEntry]:
        """Orders of the sale in the dead letters that would hold units, at their newest version there."""
        found: dict[UUID, OrderEntry] = {}
        for shard in range(self._shards.count):
            cursor: str | None = None
            while True:
                letters, cursor = await self._letters.list(order_queue(shard), cursor=cursor, limit=PAGE_LETTERS_MAX)
                for letter in letters:
                    for order in _orders_in(letter.body):
                        known = found.get(order.order_id)
                        if order.sale_id == self._sale_id and (known is None or known.version < order.version):
                            found[order.order_id] = order
                if cursor is None:
                    break
        return found

    async def _restore_dead(self, dead: dict[UUID, OrderEntry], look: SaleLook, indices: dict[str, int]) -> None:
        """Dead letters hold their units as long as somebody may replay them, if there are units and their key is free."""
        sale, report = look.definition, self._report
        for order_id in sorted(dead, key=lambda order_id: order_id.int):
            order = replace(dead[order_id], epoch=sale.epoch)
            if order.status not in _HOLDING:
                continue
            shard, rows = await self._shards.orders_of_user(order.user_id)
            stored = [entry_of(row, sale_id=self._sale_id, epoch=sale.epoch, indices=indices) for row in rows]
            is_new = all(order.idempotency_key != other.idempotency_key for other in stored)
            if not is_new or not fits(order, look.stock, report.tally):
                report.dead_letters_left_out += 1
                log.warning("dead letter holds nothing", order_id=str(order_id), shard=shard, key_is_free=is_new)
                continue
            earlier = self._dead_of_user.setdefault(order.user_id, [])
            earlier.append(order)
            await self._lanes.restore([[*stored, *earlier]])
            report.tally.add(order)
            report.dead_letters += 1

    # Reopening

    async def _reopen(self, epoch: int) -> None:
        await self._catalogue.set_stage(epoch, "reopening")
        self._step("reopening")
        look = await self._catalogue.sale()
        sale, report = look.definition, self._report
        if sale.epoch != epoch:
            raise Superseded("the sale's epoch was raised by somebody else")
        stocks = lane_stocks(sale, look.stock, report.tally)
        floors = await self._recovery.floors(sale.lanes)
        # Marked before the lanes have them: they cannot take orders without them, and a run that dies here is run again.
        await self._catalogue.mark_restocked([key for key, _, _ in look.restocks])
        await self._lanes.reopen(sale, stocks=stocks, floors=floors, restocks=look.restocks)
        report.lane_seq = await self._recovery.sequences(sale.lanes)
        report.restocks = len(look.restocks)
        for index, item in enumerate(sale.items):
            counters = [stocks[lane][index] for lane in sale.lanes]
            report.skus.append(
                {
                    "sku": item.sku,
                    "stock": look.stock[index],
                    "available": sum(counter.available for counter in counters),
                    "reserved": sum(counter.reserved for counter in counters),
                    "paid": sum(counter.paid for counter in counters),
                }
            )
        self._step("reopened", version=sale.version)

    async def _announce(self, epoch: int) -> None:
        """Lanes and document at the catalogue's version, also when staff changed the sale meanwhile."""
        for _ in range(PUSHES_MAX):
            sale = (await self._catalogue.sale()).definition
            if sale.epoch != epoch:
                raise Superseded("the sale's epoch was raised by somebody else")
            await self._lanes.define(sale)
            await self._lanes.announce(sale)
            if (await self._catalogue.sale()).definition.version == sale.version:
                break
        await self._catalogue.set_stage(epoch, "done")
        self._step("done")

    def _step(self, step: str, **more: Any) -> None:
        log.info("rebuild", step=step, sale_id=str(self._sale_id), **more)


def _orders_in(body: bytes) -> list[OrderEntry]:
    """The orders of a dead letter, without those that nobody can read."""
    orders = []
    try:
        for entry in decode_orders(body):
            orders.append(decode_entry(entry.entry))
    except (MalformedMessage, MalformedEntry):
        log.warning("a dead letter is malformed: it holds nothing")
    return orders
