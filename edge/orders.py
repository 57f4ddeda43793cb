"""A buyer's own orders: read one, list them, cancel one. `edge.order_path` places orders."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl
from uuid import UUID

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from domain import ids
from domain.orders import MalformedEntry, OrderEntry, OrderStatus
from domain.outcomes import Transition
from domain.problems import Problem
from edge.authentication import Authentication
from edge.clock import RedisClock
from edge.order_store import OrderStore, ShardUnavailable
from edge.presenting import order_document
from edge.problems import Answer, invalid, rate_limited, refuse
from edge.read_limits import Places, PlacesTaken, ReadRate
from edge.routing import Request
from edge.sale_directory import SaleDirectory
from payments.ledger import Shown
from reservation.lane import Change, Lanes
from runtime.process.backoff import Backoff

_log = structlog.get_logger("edge.orders")

LIMIT_DEFAULT: Final = 20
LIMIT_MAX: Final = 100
# Reads at once in a worker. Together they hold fewer connections to Redis than the client of reads has.
LISTS_RUNNING_MAX: Final = 2
LISTS_WAITING_MAX: Final = 32
ORDERS_RUNNING_MAX: Final = 8
ORDERS_WAITING_MAX: Final = 128
PLACE_WAIT_S_MAX: Final = 1.0
_HIGHEST: Final = UUID(int=(1 << 128) - 1)
_HEADERS: Final = [("content-type", "application/json"), ("cache-control", "no-store")]
_LOST = (RedisConnectionError, RedisTimeoutError, OSError, asyncio.TimeoutError)
_UNAVAILABLE = (RedisError, OSError, asyncio.TimeoutError, ShardUnavailable)


@dataclass(frozen=True, slots=True)
class FoundOrder:
    """A buyer's order, whether it came from Redis, and what the buyer sees of its payments, if it has any."""

    entry: OrderEntry
    in_redis: bool
    shown: Shown | None


class Orders:
    """Handlers of `/v1/orders`. `deadline_ms` bounds a cancellation with all its resubmissions."""

    def __init__(
        self,
        *,
        redis: Redis,
        store: OrderStore,
        directory: SaleDirectory,
        authentication: Authentication,
        clock: RedisClock,
        rate: ReadRate,
        deadline_ms: int,
    ) -> None:
        self._lanes = Lanes(redis)
        self._store = store
        self._directory = directory
        self._authentication = authentication
        self._clock = clock
        self._rate = rate
        self._list_places = Places(
            running_max=LISTS_RUNNING_MAX, waiting_max=LISTS_WAITING_MAX, wait_s_max=PLACE_WAIT_S_MAX
        )
        self._order_places = Places(
            running_max=ORDERS_RUNNING_MAX, waiting_max=ORDERS_WAITING_MAX, wait_s_max=PLACE_WAIT_S_MAX
        )
        self._deadline_s = deadline_ms / 1000

    async def get(self, request: Request) -> Answer:
        """One order in any state. An order of another buyer is not found."""
        return await self.with_order(request, self._shown)

    async def list(self, request: Request) -> Answer:
        """The buyer's orders, newest first, including those that are not stored yet."""
        user_id = self._reader(request)
        if not isinstance(user_id, UUID):
            return user_id
        page = _page(request.query_string)
        if not isinstance(page, _Page):
            return page
        if not self._directory.synced:
            return refuse(Problem.DEPENDENCY_UNAVAILABLE)  # the list would lack orders of sales that are not read yet
        # One order more than the limit tells whether there is a next page.
        wanted = page.limit + 1
        try:
            async with self._list_places.place():
                sales = self._directory.by_use(self._clock.now_ms())
                held, stored = await asyncio.gather(
                    self._store.held_page(user_id, sales, before=page.before, limit=wanted),
                    self._store.stored_page(user_id, before=page.before, limit=wanted),
                )
                entries, more = _newest(held, stored, limit=page.limit)
                payments = await self._store.payments([entry.order_id for entry in entries])
        except PlacesTaken:
            return refuse(Problem.OVERLOADED)
        except (*_UNAVAILABLE, MalformedEntry) as error:
            _log.warning("orders_unreadable", error=str(error))
            return refuse(Problem.DEPENDENCY_UNAVAILABLE)
        now_ms = self._clock.now_ms()
        document = {
            "items": [order_document(e, now_ms=now_ms, shown=payments.get(e.order_id)) for e in entries],
            "next_cursor": _cursor(entries[-1].order_id) if more else None,
        }
        return 200, _HEADERS, orjson.dumps(document)

    async def cancel(self, request: Request) -> Answer:
        """Cancel a reserved order. A repeated request gets the same answer."""
        return await self.with_order(request, self._cancelled)

    def _reader(self, request: Request) -> UUID | Answer:
        """The user id in the token, within the rate of reads; or the problem to answer."""
        user_id = self._authentication.buyer(request)
        if isinstance(user_id, UUID) and (wait_ms := self._rate.take(user_id)):
            return rate_limited(wait_ms, rate=self._rate.per_s, burst=self._rate.burst, name="reads")
        return user_id

    def can_exist(self, order_id: UUID) -> bool:
        """Whether an id can be an order's."""
        return self._store.can_exist(order_id)

    async def with_order(self, request: Request, act: Callable[[FoundOrder], Awaitable[Answer]]) -> Answer:
        """Find the order of the buyer who asks, and let `act` answer."""
        user_id = self._reader(request)
        if not isinstance(user_id, UUID):
            return user_id
        order_id = ids.parse_uuid(request.params["order_id"])
        if order_id is None or not self._store.can_exist(order_id):
            return refuse(Problem.ORDER_NOT_FOUND)
        try:
            async with self._order_places.place():
                entry, marked = await self._store.held(order_id)
                in_redis = entry is not None
                if entry is None:
                    entry = await self._store.stored(order_id)
                shown = None
                if entry is not None and entry.user_id == user_id and (marked or not in_redis):
                    shown = (await self._store.payments([order_id])).get(order_id)
        except PlacesTaken:
            return refuse(Problem.OVERLOADED)
        except (*_UNAVAILABLE, MalformedEntry) as error:
            _log.warning("order_unreadable", order_id=str(order_id), error=str(error))
            return refuse(Problem.DEPENDENCY_UNAVAILABLE)
        if entry is None or entry.user_id != user_id:
            return refuse(Problem.ORDER_NOT_FOUND)
        return await act(FoundOrder(entry, in_redis, shown))

    async def _shown(self, found: FoundOrder) -> Answer:
        return self._answer(found.entry, found.shown)

    async def _cancelled(self, found: FoundOrder) -> Answer:
        entry = found.entry
        if not found.in_redis:
            # Final and stored a day ago, or lost by Redis. PostgreSQL has the former, a rebuild restores the latter.
            if entry.status is OrderStatus.CANCELLED:
                return self._answer(entry, found.shown)
            if entry.status_at(self._clock.now_ms()).is_final:
                return _conflict(entry.status_at(self._clock.now_ms()))
            return refuse(Problem.DEPENDENCY_UNAVAILABLE)
        try:
            change = await self._run_cancel(entry)
        except _LOST:
            return refuse(Problem.OUTCOME_UNKNOWN, "The outcome is unknown: repeat the request to learn it")
        except RedisError as error:
            _log.error("cancel_failed", order_id=str(entry.order_id), error=str(error))
            return refuse(Problem.DEPENDENCY_UNAVAILABLE)
        if change.entry is None:
            return refuse(Problem.ORDER_NOT_FOUND)
        if change.transition is Transition.CONFLICT:
            return _conflict(change.entry.status_at(self._clock.now_ms()))
        return self._answer(change.entry, found.shown)

    async def _run_cancel(self, entry: OrderEntry) -> Change:
        """Run the script until it replies, at most until the deadline. Repetition is harmless (REPEATED)."""
        backoff = Backoff(first_s=0.02, longest_s=0.3)
        async with asyncio.timeout(self._deadline_s):
            while True:
                try:
                    return await self._lanes.cancel(entry)
                except _LOST:
                    await asyncio.sleep(backoff.next_s())

    def _answer(self, entry: OrderEntry, shown: Shown | None) -> Answer:
        return 200, _HEADERS, orjson.dumps(order_document(entry, now_ms=self._clock.now_ms(), shown=shown))


def _newest(held: Sequence[OrderEntry], stored: Sequence[OrderEntry], *, limit: int) -> tuple[list[OrderEntry], bool]:
    """Each order at its newest version, the newest orders first; and whether there are more than `limit`."""
    newest: dict[UUID, OrderEntry] = {}
    for entry in (*held, *stored):
        known = newest.get(entry.order_id)
        if known is None or entry.version > known.version:
            newest[entry.order_id] = entry
    entries = sorted(newest.values(), key=lambda entry: entry.order_id.int, reverse=True)
    return entries[:limit], len(entries) > limit


class _Page:
    """One page of the list: at most `limit` orders with ids below `before`."""

    __slots__ = ("before", "limit")

    def __init__(self, before: UUID, limit: int) -> None:
        self.before = before
        self.limit = limit


def _page(query_string: str) -> _Page | Answer:
    """Read `cursor` and `limit`. Ignores unknown parameters, rejects repeated ones."""
    values: dict[str, str] = {}
    try:
        pairs = parse_qsl(query_string, keep_blank_values=True, max_num_fields=16)
    except ValueError:
        return invalid("", "too many query parameters")
    for name, value in pairs:
        if name in values:
            return invalid(f"/{name}", "given more than once")
        if name in ("cursor", "limit"):
            values[name] = value
    limit = values.get("limit", str(LIMIT_DEFAULT))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= LIMIT_MAX):
        return invalid("/limit", f"a whole number from 1 to {LIMIT_MAX}")
    before = _HIGHEST
    if "cursor" in values:
        parsed = _parse_cursor(values["cursor"])
        if parsed is None:
            return invalid("/cursor", "not a cursor of this list")
        before = parsed
    return _Page(before, int(limit))


def _cursor(order_id: UUID) -> str:
    """The last order's id, opaque to clients, with a mark that distinguishes it from cursors of other lists."""
    return base64.urlsafe_b64encode(b"o" + order_id.bytes).rstrip(b"=").decode("ascii")


def _parse_cursor(text: str) -> UUID | None:
    try:
        raw = base64.urlsafe_b64decode(text.encode("ascii") + b"=")
    except (binascii.Error, ValueError):
        return None
    if len(raw) != 17 or raw[:1] != b"o":
        return None
    order_id = UUID(bytes=raw[1:])
    return order_id if ids.is_order_id(order_id) and _cursor(order_id) == text else None


def _conflict(status: OrderStatus) -> Answer:
    return refuse(Problem.ORDER_STATE_CONFLICT, f"The order is {status.label}")
