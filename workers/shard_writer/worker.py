"""Takes messages off a shard's queue, stores them in batches, settles each message by what became of its orders.

    all stored or seen before        ack
    all without a grant              retry later; costs no attempt, however often; after a while noted for the reconciler,
                                     which finds out whether they wait in vain
    one order alone, and poison      retry by the policy, at last the dead letters
    a mixture                        the waiting ones and each poison order again as messages of their own, then ack;
                                     without room for them, retry the whole later

Weather (a database away, locks, full dead letters) pauses consumption with the messages unacknowledged. Every step may be
repeated after a crash: messages are acknowledged last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar
from uuid import UUID

import psycopg
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from domain import topology
from domain.messages import FENCE_HEADER, MalformedMessage, SequencedEntry, decode_orders, encode_orders
from domain.topology import Topology
from runtime.process.backoff import Backoff
from runtime.process.service import Service
from runtime.queue import Consumer, Delivery, Queue, QueueFull, QueueUnavailable, RetryPolicy
from workers.shard_writer import metrics
from workers.shard_writer.grants import Grants
from workers.shard_writer.plan import PoisonEntry, Version, group_by_order, read_entry
from workers.shard_writer.store import ShardStore, StoreResult

FINAL_TTL_S = 24 * 3600
PREFETCH = 32
PAUSE_S_MAX = 5.0
RECEIVE_S = 0.5
# Between two takes that were not full: fewer, larger transactions. Delays what is stored, never what is answered.
GATHER_S = 0.1
_EXPIRE_BATCH = 1000
_WAITING = "waiting: "
# An order without a grant: releases and sweeps come by the second, so there is no use in waiting much longer.
_WAITING_DELAYS_MS = (200, 400, 800, 1_600)
# Three seconds of waiting: from then on the reconciler is told.
_NOTED_AFTER = len(_WAITING_DELAYS_MS)

log = structlog.get_logger()
T = TypeVar("T")


@dataclass(slots=True)
class Parcel:
    """A delivery taken apart. `units` are its orders by id, and by place (below 1000) what could not be decoded."""

    delivery: Delivery
    versions: list[Version] = field(default_factory=list)
    units: dict[int, list[SequencedEntry]] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)
    poison: dict[int, str] = field(default_factory=dict)


class Stopping(Exception):
    """The process is to stop while a batch is in hand: its messages stay unacknowledged and come again."""


class ShardWriter:
    """The writer of one shard; several may run, in one process or in many."""

    def __init__(
        self,
        *,
        shard: int,
        cluster: Topology,
        queue: Queue,
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
        """Store what has arrived; the number of messages."""
        deliveries = await consumer.next_batch(count_max=PREFETCH, wait_s=RECEIVE_S)
        self._report(consumer.problem)
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
        """All that this writer took before is stored or settled: say so in the shard, then acknowledge."""
        sale_id, _, fence = delivery.headers[FENCE_HEADER].partition(":")
        try:
            noted = UUID(sale_id), UUID(fence)
        except ValueError:
            await self._settled(lambda: delivery.dead_letter("malformed fence"))
            return
        await self._through_weather("database", lambda: self._store.note_fence(*noted))
        await self._settled(delivery.ack)

    def _open(self, delivery: Delivery) -> Parcel:
        parcel = Parcel(delivery)
        try:
            entries = decode_orders(delivery.body)
        except MalformedMessage as error:
            parcel.units[0] = []
            parcel.poison[0] = f"malformed message: {error}"
            return parcel
        for place, entry in enumerate(entries):
            try:
                version = read_entry(entry, shard=self._shard, topology=self._cluster)
            except PoisonEntry as error:
                parcel.units[place] = [entry]
                parcel.poison[place] = str(error)
                continue
            parcel.versions.append(version)
            parcel.units.setdefault(version.entry.order_id.int, []).append(entry)
        return parcel

    async def process(self, parcels: Sequence[Parcel]) -> None:
        """Store the parcels' orders in one transaction, then settle every parcel. Raises Stopping."""
        orders = group_by_order(version for parcel in parcels for version in parcel.versions)
        if orders:
            result = await self._through_weather("database", lambda: self._store.store(orders))
            metrics.count(self._shard, result)
            # Before the acknowledgement: after a crash in between, the redelivery repeats it.
            await self._give_final_orders_their_ttl(result)
            await self._give_up_grants(result)
            waiting = {order.order_id.int for order in result.waiting}
            refused = {order.order_id.int: reason for order, reason in result.poison}
            if waiting or refused:
                for parcel in parcels:
                    parcel.waiting.update(waiting & parcel.units.keys())
                    parcel.poison.update({unit: refused[unit] for unit in refused.keys() & parcel.units.keys()})
        # All of them come to an end before an error is raised: none goes on behind our back.
        ends = await asyncio.gather(*(self._settle(parcel) for parcel in parcels), return_exceptions=True)
        for end in ends:
            if end is not None:
                raise end

    async def _settle(self, parcel: Parcel) -> None:
        delivery = parcel.delivery
        if len(parcel.waiting) == len(parcel.units):
            waits = sum(failure.reason.startswith(_WAITING) for failure in delivery.history)
            if waits >= _NOTED_AFTER:
                orders = group_by_order(parcel.versions)
                await self._through_weather("database", lambda: self._store.note_waiting(orders))
            delay_ms = _WAITING_DELAYS_MS[min(waits, len(_WAITING_DELAYS_MS) - 1)]
            await self._settled(lambda: delivery.retry(delay_ms, f"{_WAITING}no grant"))
        elif len(parcel.poison) == len(parcel.units) == 1:
            ((unit, reason),) = parcel.poison.items()
            await self._settle_poison(delivery, parcel.units[unit], reason)
        else:
            # Publish before ack: a crash between repeats, never loses.
            together = sorted((entry for unit in parcel.waiting for entry in parcel.units[unit]), key=_lane_seq)
            try:
                for entries in (together, *(parcel.units[unit] for unit in parcel.poison)):
                    if entries:
                        await self._publish(entries)
            except QueueFull:
                # Only its writers make room in this queue, so none of them waits for it: the whole message comes again.
                await self._settled(lambda: delivery.retry(_WAITING_DELAYS_MS[-1], f"{_WAITING}queue full"))
                return
            await self._settled(delivery.ack)

    async def _settle_poison(self, delivery: Delivery, entries: Sequence[SequencedEntry], reason: str) -> None:
        # Waiting for a grant cost no attempt, so only failures that were the order's own count.
        failures = sum(not failure.reason.startswith(_WAITING) for failure in delivery.history)
        decision = self._policy.decide(failures + 1)
        if decision.retry_in_ms is not None:
            delay_ms = decision.retry_in_ms
            metrics.POISON_RETRIED.labels(self._shard).inc()
            await self._settled(lambda: delivery.retry(delay_ms, reason))
            return
        metrics.DEAD_LETTERED.labels(self._shard).inc()
        log.error("order dead-lettered", shard=self._shard, message=delivery.message_id, reason=reason)
        if entries:
            # Noted first: should the crash come between, the message is still in the queue and comes here again.
            await self._through_weather("database", lambda: self._store.note_dead_lettered(entries, reason))
        await self._settled(lambda: delivery.dead_letter(reason))

    async def _publish(self, entries: Sequence[SequencedEntry]) -> None:
        """The entries as a message of their own: what it holds does not hold up the others any more. QueueFull."""
        body = encode_orders(entries[0].lane, [(entry.lane_seq, entry.entry) for entry in entries])
        message_id = f"{entries[0].lane}-{entries[0].lane_seq}-apart"
        operation = partial(self._queue.publish, self._name, body, message_id=message_id)
        await self._through_weather("queue", operation, passing=(QueueUnavailable,))

    async def _settled(self, operation: Callable[[], Awaitable[None]]) -> None:
        """Settle; an unconfirmed settlement brings the message again, a full place is waited for."""
        try:
            await self._through_weather("queue", operation, passing=(QueueFull,))
        except QueueUnavailable as error:
            log.warning("message not settled, it comes again", shard=self._shard, error=error.detail)

    async def _give_final_orders_their_ttl(self, result: StoreResult) -> None:
        """Best effort: a value that misses it keeps its place in memory, and the backstop of expiry finds it."""
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
        """Tell the catalogue at once what was released; if it cannot be told, the sweep tells it later."""
        if not result.given_up:
            return
        try:
            await self._grants.lower_to(result.given_up)
        except psycopg.Error as error:
            log.warning("grants not lowered yet", shard=self._shard, error=type(error).__name__)

    async def _through_weather(
        self,
        what: str,
        operation: Callable[[], Awaitable[T]],
        *,
        passing: tuple[type[Exception], ...] = (QueueFull, QueueUnavailable),
    ) -> T:
        """Repeat until it succeeds, with growing, jittered pauses; Stopping when the process is to end meanwhile."""
        weather: tuple[type[Exception], ...] = (psycopg.Error, OSError, TimeoutError, *passing)
        backoff = Backoff(longest_s=PAUSE_S_MAX)
        while True:
            try:
                answer = await operation()
            except weather as error:
                metrics.PAUSES.labels(self._shard, what).inc()
                self._report(f"{what}: {type(error).__name__}")
                log.warning(
                    "paused", shard=self._shard, waits_for=what, error=f"{type(error).__name__}: {error}".strip()
                )
                if await self._service.pause(backoff.next_s()):
                    raise Stopping from error
                continue
            self._report(None)
            return answer

    def _report(self, problem: str | None) -> None:
        self._service.ready(f"shard {self._shard}", problem is None, problem or "")


def _lane_seq(entry: SequencedEntry) -> int:
    return entry.lane_seq
