"""Sales known to this worker: definitions from Redis, kept fresh by a channel. Decides nothing about orders.

`find` never waits; `load` and `refresh` read Redis, many callers sharing one `MGET`. An unknown id is remembered for a
second, so that guessed ids cost Redis nothing. After each (re)connection of the channel every known sale is read again,
since messages may have been missed. A worker that still has an old version gets STALE from the lane.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from domain import ids, topology
from domain.sales import SaleDefinition
from hotpath.sales import LaneNames, SaleView, Tally
from reservation.documents import Announcement, MalformedDocument, SaleDocuments, decode_document
from runtime.redis.channel import ChannelLost

_log = structlog.get_logger("edge.sales")

SALES_MAX = 1000  # sales kept; beyond it one that has ended is dropped, else the one that was used longest ago
RETIRED_MAX = 4096  # dropped sales whose last counts are not written yet
ABSENT_MAX = 4096  # unknown ids remembered
ABSENT_S = 1.0
PENDING_MAX = 1024  # ids waiting for Redis
READ_MAX = 64  # ids in one MGET
REFRESH_AGAIN_S = 0.02


class DirectoryUnavailable(Exception):
    """Redis did not answer for a sale's definition, or too many reads wait already."""


@dataclass(slots=True)
class KnownSale:
    """A published sale as the domain knows it, and as the compiled order path reads it.

    `used_at` is the time (monotonic) of the last read, or of the last look at its counts that found some.
    """

    definition: SaleDefinition
    view: SaleView
    used_at: float


def make_view(definition: SaleDefinition, *, tally: Tally | None = None) -> SaleView:
    """View of a sale for the compiled order path; `tally` is that of the replaced view, so that counts go on."""
    sale_id = definition.sale_id
    return SaleView(
        sale_id=sale_id.bytes,
        epoch=definition.epoch,
        version=definition.version,
        hold_ms=definition.hold_ms,
        currency=definition.currency,
        lanes=[
            LaneNames(
                lane=lane,
                state_key=topology.lane_state_key(lane),
                stream_key=topology.lane_stream_key(lane),
                beat_key=topology.lane_beat_key(lane),
                user_key_prefix=topology.user_key_prefix(lane, sale_id),
                order_key_prefix=topology.order_key_prefix(lane),
            )
            for lane in definition.lanes
        ],
        items=[(item.sku, item.unit_price_minor) for item in definition.items],
        tally=tally,
    )


class SaleDirectory:
    """Known sales by canonical id (36 lower-case characters)."""

    def __init__(self, redis: Redis, *, kept_s: int = 86_400) -> None:
        """`kept_s`: how long after its end lanes keep a sale."""
        self._kept_ms = kept_s * 1000
        self._documents = SaleDocuments(redis)
        self._channel = self._documents.channel(opened=self._read_all, changed=self._changed)
        self._known: dict[str, KnownSale] = {}
        self._views: dict[str, SaleView] = {}
        self._absent: dict[str, float] = {}  # in order of insertion, so the oldest is first
        self._pending: dict[str, asyncio.Future[KnownSale | None]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._retired: deque[KnownSale] = deque(maxlen=RETIRED_MAX)
        self.find: Callable[[str], SaleView | None] = self._views.get

    @property
    def synced(self) -> bool:
        """Whether the channel is open and every known sale was read since it was opened."""
        return self._channel.is_open

    def known(self, sale_id: str) -> KnownSale | None:
        """The sale with its domain definition, without waiting."""
        return self._known.get(sale_id)

    def is_forgotten(self, sale_id: str, now_ms: int) -> bool:
        """Whether a known sale ended so long ago that the janitor has cleared its lanes, so that nothing was lost."""
        sale = self._known.get(sale_id.lower())
        return sale is not None and now_ms >= sale.definition.ends_at_ms + self._kept_ms

    def __len__(self) -> int:
        """Number of known sales."""
        return len(self._known)

    def tallies(self) -> list[tuple[str, Tally]]:
        """The sale ids and counts of all sales, also of those that were dropped since the last call.

        The caller takes the counts. Sales with counts are in use.
        """
        now = time.monotonic()
        for sale in self._known.values():
            if sale.view.tally.total:
                sale.used_at = now
        retired = [self._retired.popleft() for _ in range(len(self._retired))]
        return [(str(sale.definition.sale_id), sale.view.tally) for sale in (*self._known.values(), *retired)]

    def by_use(self, now_ms: int) -> list[SaleDefinition]:
        """All known sales: those that are on first, the latest used first."""
        sales = sorted(
            self._known.values(), key=lambda sale: (sale.definition.ends_at_ms > now_ms, sale.used_at), reverse=True
        )
        return [sale.definition for sale in sales]

    async def load(self, sale_id: str) -> SaleView | None:
        """View of a sale, from memory or from Redis; None if there is no such published sale.

        Raises DirectoryUnavailable.
        """
        sale = await self.load_known(sale_id)
        return sale.view if sale else None

    async def load_known(self, sale_id: str) -> KnownSale | None:
        """Like `load`, with the domain definition."""
        parsed = ids.parse_uuid(sale_id)
        if parsed is None:
            return None
        canonical = str(parsed)
        sale = self._known.get(canonical)
        if sale is not None:
            sale.used_at = time.monotonic()
            return sale
        absent_until = self._absent.get(canonical)
        if absent_until is not None and time.monotonic() < absent_until:
            return None
        return await self._read(canonical)

    async def refresh(self, sale_id: str) -> SaleView | None:
        """View of a sale after reading its document again, as after STALE; None if there is no document."""
        sale_id = sale_id.lower()  # clients may write it in capitals; under another name it would be a second sale
        before = self._known.get(sale_id)
        sale = await self._read(sale_id)
        if sale is not None and sale is before:
            # Lanes get a new version before the document does: the document will follow.
            await asyncio.sleep(REFRESH_AGAIN_S)
            sale = await self._read(sale_id)
        return sale.view if sale else None

    async def _read(self, sale_id: str) -> KnownSale | None:
        future = self._pending.get(sale_id)
        if future is None:
            if len(self._pending) >= PENDING_MAX:
                raise DirectoryUnavailable("too many sales are being looked up")
            future = asyncio.get_running_loop().create_future()
            self._pending[sale_id] = future
            if self._reader is None:
                self._reader = asyncio.create_task(self._read_pending(), name="sale-reader")
        return await asyncio.shield(future)

    async def _read_pending(self) -> None:
        """Serve `_pending` until it is empty. An id leaves it before the read, so a later caller gets a later read."""
        try:
            while self._pending:
                batch = [(i, self._pending.pop(i)) for i in list(self._pending)[:READ_MAX]]
                try:
                    documents = await self._documents.read_raw([UUID(sale_id) for sale_id, _ in batch])
                except (TimeoutError, RedisError, OSError) as error:
                    for _, future in batch:
                        future.set_exception(DirectoryUnavailable(str(error)))
                        future.exception()  # mark it as retrieved: all callers may have given up
                    continue
                for (sale_id, future), document in zip(batch, documents, strict=True):
                    try:
                        future.set_result(self._keep(sale_id, document))
                    except Exception as error:  # its callers would wait for ever, and those of the sales behind it
                        _log.exception("sale_document_not_kept", sale_id=sale_id)
                        future.set_exception(DirectoryUnavailable(type(error).__name__))
                        future.exception()
        finally:
            self._reader = None

    def _keep(self, sale_id: str, document: bytes | None) -> KnownSale | None:
        if document is None:
            # A published sale does not disappear: Redis lost its document, and its lanes will answer STALE.
            if sale_id not in self._known:
                self._remember_absent(sale_id)
            return None
        try:
            definition = decode_document(document)
        except MalformedDocument as error:
            _log.error("sale_document_malformed", sale_id=sale_id, error=str(error))
            return self._known.get(sale_id)
        known = self._known.get(sale_id)
        if known is not None and (definition.epoch, definition.version) <= (
            known.definition.epoch,
            known.definition.version,
        ):
            return known  # this read started before the one that found the newer version
        tally = known.view.tally if known else None
        sale = KnownSale(definition, make_view(definition, tally=tally), time.monotonic())
        self._known[sale_id] = sale
        self._views[sale_id] = sale.view
        self._absent.pop(sale_id, None)
        if len(self._known) > SALES_MAX:
            self._drop_one(sale_id)
        return sale

    def _drop_one(self, newest: str) -> None:
        """Drop a sale that has ended, the first one; else the one that was used longest ago."""
        now_ms = time.time() * 1000
        others = [sale_id for sale_id in self._known if sale_id != newest]
        if ended := [sale_id for sale_id in others if self._known[sale_id].definition.ends_at_ms <= now_ms]:
            dropped = min(ended, key=lambda sale_id: self._known[sale_id].definition.ends_at_ms)
        else:
            # Without counts first: the order path does not mark its sales as used before they are looked at.
            dropped = min(others, key=lambda i: (self._known[i].view.tally.total > 0, self._known[i].used_at))
        self._forget(dropped)

    def _forget(self, sale_id: str) -> None:
        self._views.pop(sale_id, None)
        sale = self._known.pop(sale_id, None)
        if sale is not None:
            self._retired.append(sale)

    def _remember_absent(self, sale_id: str) -> None:
        self._absent.pop(sale_id, None)
        if len(self._absent) >= ABSENT_MAX:
            del self._absent[next(iter(self._absent))]
        self._absent[sale_id] = time.monotonic() + ABSENT_S

    async def follow(self) -> None:
        """Follow the channel of changes until cancelled."""
        await self._channel.follow()

    async def _changed(self, announcement: Announcement) -> None:
        sale_id = str(announcement.sale_id)
        if announcement.gone:
            self._forget(sale_id)
            return
        try:
            await self._read(sale_id)
        except DirectoryUnavailable as error:
            raise ChannelLost(str(error)) from error  # reopening reads every sale again

    async def _read_all(self) -> None:
        """Read every published sale and every known one: at the start, and after messages may have been missed."""
        self._absent.clear()
        wanted = set(self._known)
        async for sale_id in self._documents.scan():
            if len(wanted) >= SALES_MAX:
                break
            wanted.add(str(sale_id))
        try:
            for start in range(0, len(queue := sorted(wanted)), READ_MAX):
                await asyncio.gather(*(self._read(i) for i in queue[start : start + READ_MAX]))
        except DirectoryUnavailable as error:
            raise ChannelLost(str(error)) from error
