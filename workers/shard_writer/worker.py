"""Takes messages off a shard's queue, stores them in batches, settles each message by the result for its orders.

    all stored or seen before        ack
    all without a grant              retry later; costs no attempt, however often; after a while noted for the rejecter,
                                     which finds out whether they wait in vain
    one order alone, and poison      retry by the policy, at last the dead letters
    all of buckets that move now     retry soon; costs no attempt
    some of buckets that have moved  publish those to their shards' queues, then as a mixture
    a mixture                        the waiting ones and each poison order again as messages of their own, then ack;
                                     without room for them, retry the whole later

A transient fault (a database away, locks, full dead letters) pauses consumption with the messages unacknowledged. Every
step may be repeated after a crash: messages are acknowledged last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

import psycopg
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from domain import topology
from domain.messages import FENCE_HEADER, MalformedMessage, SequencedEntry, decode_orders, encode_sequenced
from domain.topology import ORDER_RETRY_DELAYS_MS, Topology
from runtime.buckets import following
from runtime.dead_letters import DeadLetters
from runtime.process.service import Service
from runtime.process.tasks import until_tick
from runtime.queue import Consumer, Delivery, FailureKind, Queue, QueueFull, RetryPolicy
from workers.consuming import REFUSED, Consuming, Stopping, failures_of_its_own, letter_of, reason_of
from workers.shard_writer import metrics
from workers.shard_writer.grants import Grants
from workers.shard_writer.plan import Incoming, PoisonEntry, StoreResult, Version, group_by_order, read_entry
from workers.shard_writer.store import ShardStore

FINAL_TTL_S = 24 * 3600
PREFETCH = 32
RECEIVE_S = 0.5
# Between two takes that were not full: fewer, larger transactions. Delays storing, never an answer to a buyer.
GATHER_S = 0.2
_EXPIRE_BATCH = 1000
# An order without a grant: releases and sweeps come by the second, so longer delays have no use.
_WAITING_DELAYS_MS = ORDER_RETRY_DELAYS_MS[:4]
_MOVING_DELAY_MS = ORDER_RETRY_DELAYS_MS[0]  # writers wait for a bucket some tenths of a second
# Three seconds of waiting: from then on the rejecter is told.
_NOTED_AFTER = len(_WAITING_DELAYS_MS)

log = structlog.get_logger()


@dataclass(slots=True)
class Parcel:
    """A delivery taken apart. `units` are its orders by id; entries that could not be decoded are there by their place.

    A place is below 1000, and an order's id is not. `poison` has the kind and the reason of each refused unit.
    `elsewhere` has the shard of each order whose bucket has moved; `moving` are orders of buckets on their way.
    """

    delivery: Delivery
    versions: list[Version] = field(default_factory=list)
    units: dict[int, list[SequencedEntry]] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)
    poison: dict[int, tuple[FailureKind, str]] = field(default_factory=dict)
    elsewhere: dict[int, int] = field(default_factory=dict)
    moving: set[int] = field(default_factory=set)


class ShardWriter:
    """The writer of one shard; several may run, in one process or in many."""

    def __init__(
        self,
        *,
        shard: int,
        cluster: Topology,
        queue: Queue,
        letters: DeadLetters,
        store: ShardStore,
        grants: Grants,
        redis: Redis,
        service: Service,
        batch_max: int,
        policy: RetryPolicy | None = None,
    ) -> None:
        """`batch_max` is in orders; a single message may be larger."""
        self._shard = shard
        self._cluster = cluster
        self._queue = queue
        self._name = topology.order_queue(shard)
        self._store = store
        self._grants = grants
        self._redis = redis
        self._service = service
        self._batch_max = batch_max
        self._policy = policy or RetryPolicy()
        self._consuming = Consuming(
            service,
            letters,
            report=lambda waits_for, problem: self._report(problem and f"{waits_for}: {problem}", by=waits_for),
            count_pause=lambda waits_for: metrics.PAUSES.labels(shard, waits_for).inc(),
        )

    async def run(self) -> None:
        """Consume until the service stops; the batch in hand is finished unless its database is away."""
        self._report(None)
        async with self._queue.consume(self._name, prefetch=PREFETCH) as consumer:
            try:
                while not self._service.stopping.is_set():
                    taken = await self._take(consumer)
                    if 0 < taken < PREFETCH:
                        await self._service.pause(GATHER_S)
            except Stopping:
                log.info("stopped during a pause", shard=self._shard)

    async def _take(self, consumer: Consumer) -> int:
        """Store the messages that have arrived; their number."""
        received = await consumer.next_batch(count_max=PREFETCH, wait_s=until_tick(RECEIVE_S))
        self._report(consumer.problem)
        deliveries = await self._consuming.readable(received)
        batch: list[Parcel] = []
        orders = 0
        for delivery in deliveries:
            if FENCE_HEADER in delivery.headers:
                if batch:
                    await self.process(batch)
                    batch, orders = [], 0
                await self._pass_fence(delivery)
                continue
            parcel = self._open(delivery)
            if batch and orders + len(parcel.versions) > self._batch_max:
                await self.process(batch)
                batch, orders = [], 0
            batch.append(parcel)
            orders += len(parcel.versions)
        if batch:
            await self.process(batch)
        return len(deliveries)

    async def _pass_fence(self, delivery: Delivery) -> None:
        """All messages that this writer took before are stored or settled: note that in the shard, then acknowledge."""
        sale_id, _, fence = delivery.headers[FENCE_HEADER].partition(":")
        try:
            noted = UUID(sale_id), UUID(fence)
        except ValueError:
            await self._consuming.give_up(delivery, FailureKind.MALFORMED, "malformed fence")
            return
        await self._consuming.through_faults("database", lambda: self._store.note_fence(*noted))
        await self._consuming.ack(delivery)

    def _open(self, delivery: Delivery) -> Parcel:
        parcel = Parcel(delivery)
        try:
            entries = decode_orders(delivery.body)
        except MalformedMessage as error:
            parcel.units[0] = []
            parcel.poison[0] = FailureKind.MALFORMED, f"malformed message: {error}"
            return parcel
        for place, entry in enumerate(entries):
            try:
                version = read_entry(entry, shard=self._shard, topology=self._cluster)
            except PoisonEntry as error:
                parcel.units[place] = [entry]
                parcel.poison[place] = error.kind, str(error)
                continue
            parcel.versions.append(version)
            parcel.units.setdefault(version.entry.order_id.int, []).append(entry)
        return parcel

    async def process(self, parcels: Sequence[Parcel]) -> None:
        """Store the parcels' orders in one transaction, then settle every parcel. Raises Stopping."""
        orders = group_by_order(version for parcel in parcels for version in parcel.versions)
        if orders:
            result = await self._store_all(orders)
            metrics.count(self._shard, result)
            # Before the acknowledgement: after a crash in between, the redelivery repeats it.
            await self._give_final_orders_their_ttl(result)
            await self._give_up_grants(result)
            waiting = {order.order_id.int for order in result.waiting}
            refused = {order.order_id.int: (FailureKind.REFUSED_BY_DATABASE, reason) for order, reason in result.poison}
            # A shard that this process does not know is waited for: its settings are older than the map.
            known = {o.order_id.int: s for o, s in result.elsewhere if s is not None and s < self._cluster.shards}
            moving = {order.order_id.int for order, _ in result.elsewhere} - known.keys()
            if waiting or refused or result.elsewhere:
                for parcel in parcels:
                    parcel.waiting.update(waiting & parcel.units.keys())
                    parcel.poison.update({unit: refused[unit] for unit in refused.keys() & parcel.units.keys()})
                    parcel.elsewhere.update({unit: known[unit] for unit in known.keys() & parcel.units.keys()})
                    parcel.moving.update(moving & parcel.units.keys())
        # Each of them ends before an error is raised: none goes on in the background.
        ends = await asyncio.gather(*(self._settle(parcel) for parcel in parcels), return_exceptions=True)
        for end in ends:
            if end is not None:
                raise end

    async def _store_all(self, orders: Sequence[Incoming]) -> StoreResult:
        """Store the orders. Raises Stopping.

        The store bisects what the rows of an order cause. This bisects what is refused beside them, by the catalogue's
        half of the guard for example: a single order that was refused, for the second time, is poison.
        """
        try:
            return await self._consuming.through_faults("database", lambda: self._store.store(orders))
        except REFUSED as error:
            log.warning("batch refused", shard=self._shard, orders=len(orders), reason=reason_of(error))
            if len(orders) > 1:
                middle = len(orders) // 2
                result = await self._store_all(orders[:middle])
                result.add(await self._store_all(orders[middle:]))
                return result
        try:
            return await self._consuming.through_faults("database", lambda: self._store.store(orders))
        except REFUSED as error:
            return StoreResult(poison=[(orders[0], reason_of(error))])

    async def _settle(self, parcel: Parcel) -> None:
        delivery = parcel.delivery
        if len(parcel.waiting) == len(parcel.units):
            await self._settle_waiting(parcel)
        elif len(parcel.moving) == len(parcel.units):
            await self._consuming.retry(delivery, _MOVING_DELAY_MS, FailureKind.SHARD_AWAY, "waiting: bucket moves")
        elif len(parcel.poison) == len(parcel.units) == 1:
            await self._settle_poison(parcel)
        elif parcel.waiting or parcel.poison or parcel.elsewhere or parcel.moving:
            await self._settle_mixture(parcel)
        else:
            await self._consuming.ack(delivery)

    async def _settle_waiting(self, parcel: Parcel) -> None:
        waits = parcel.delivery.failures.get(FailureKind.NO_GRANT, 0)
        if waits >= _NOTED_AFTER:
            orders = group_by_order(parcel.versions)
            await self._consuming.through_faults("database", lambda: self._store.note_waiting(orders))
        delay_ms = _WAITING_DELAYS_MS[min(waits, len(_WAITING_DELAYS_MS) - 1)]
        await self._consuming.retry(parcel.delivery, delay_ms, FailureKind.NO_GRANT, "waiting: no grant")

    async def _settle_poison(self, parcel: Parcel) -> None:
        delivery = parcel.delivery
        ((unit, (kind, reason)),) = parcel.poison.items()
        if kind is FailureKind.UNROUTABLE and await self._has_newer_map():
            await self._consuming.retry(delivery, _MOVING_DELAY_MS, FailureKind.SHARD_AWAY, "waiting: bucket moved")
            return
        # Waiting for a grant costs no attempt: only the order's own failures count.
        decision = self._policy.decide(failures_of_its_own(delivery) + 1)
        if decision.retry_in_ms is not None:
            metrics.POISON_RETRIED.labels(self._shard).inc()
            await self._consuming.retry(delivery, decision.retry_in_ms, kind, reason)
            return
        metrics.DEAD_LETTERED.labels(self._shard).inc()
        log.error("order dead-lettered", shard=self._shard, message=delivery.message_id, kind=kind, reason=reason)
        # Noted first: after a crash in between, the message is still in the queue and comes here again.
        letter = letter_of(delivery, kind, reason).identity
        orders, entries = parcel.versions, parcel.units[unit]
        if orders:
            await self._consuming.through_faults(
                "database", lambda: self._store.note_dead_lettered(orders, reason, letter=letter)
            )
        elif entries:
            await self._consuming.through_faults(
                "database", lambda: self._store.note_undecodable(entries, reason, letter=letter)
            )
        await self._consuming.give_up(delivery, kind, reason)

    async def _has_newer_map(self) -> bool:
        """Whether buckets have moved that this process did not know of."""
        return await self._consuming.through_faults("redis", lambda: following.refresh(self._redis, self._cluster))

    async def _settle_mixture(self, parcel: Parcel) -> None:
        """Publish before ack: a crash in between repeats, never loses."""
        groups = [(self._name, parcel.waiting), (self._name, parcel.moving)]
        groups += [(self._name, {unit}) for unit in parcel.poison]
        for shard in set(parcel.elsewhere.values()):
            metrics.FORWARDED.labels(self._shard).inc()
            groups.append((topology.order_queue(shard), {u for u, s in parcel.elsewhere.items() if s == shard}))
        try:
            for queue, units in groups:
                if units:
                    entries = sorted((entry for unit in units for entry in parcel.units[unit]), key=_lane_seq)
                    await self._publish(queue, entries)
        except QueueFull:
            # Only writers make room in these queues, so waiting for room could last for ever: the whole message comes
            # again.
            await self._consuming.retry(
                parcel.delivery, _WAITING_DELAYS_MS[-1], FailureKind.QUEUE_FULL, "waiting: queue full"
            )
            return
        await self._consuming.ack(parcel.delivery)

    async def _publish(self, queue: str, entries: Sequence[SequencedEntry]) -> None:
        """Publish the entries as a message of their own, so that they no longer hold up the others.

        Raises QueueFull.
        """
        body = encode_sequenced(entries)
        message_id = f"{entries[0].lane}-{entries[0].lane_seq}-apart"
        await self._consuming.through_faults("queue", partial(self._queue.publish, queue, body, message_id=message_id))

    async def _give_final_orders_their_ttl(self, result: StoreResult) -> None:
        """Best effort: a value without its TTL stays in memory until the backstop of expiry finds it."""
        try:
            for start in range(0, len(result.final), _EXPIRE_BATCH):
                pipeline = self._redis.pipeline(transaction=False)
                for order_id in result.final[start : start + _EXPIRE_BATCH]:
                    pipeline.expire(topology.order_key(order_id), FINAL_TTL_S)
                await pipeline.execute()
        except (RedisError, OSError, TimeoutError) as error:
            metrics.TTL_MISSED.labels(self._shard).inc(len(result.final))
            log.warning("final orders without TTL", shard=self._shard, orders=len(result.final), error=str(error))

    async def _give_up_grants(self, result: StoreResult) -> None:
        """Lower the catalogue's grants at once by the released units; after a failure, the sweep does it later."""
        if not result.given_up:
            return
        try:
            await self._grants.lower_to(result.given_up)
        except psycopg.Error as error:
            log.warning("grants not lowered yet", shard=self._shard, error=type(error).__name__)

    def _report(self, problem: str | None, *, by: str = "consumer") -> None:
        self._service.ready(f"shard {self._shard}", problem is None, problem or "", by=by)


def _lane_seq(entry: SequencedEntry) -> int:
    return entry.lane_seq
