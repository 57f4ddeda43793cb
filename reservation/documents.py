"""Documents of published sales, which edges and workers read, and the channel that announces changes.

A document is the JSON of `SaleDefinition` at `topology.sale_key`; the set `topology.SALES_KEY` lists the sales. A newer
document (by epoch, then version) is never replaced by an older one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import cast
from uuid import UUID

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import WatchError

from domain import ids, topology
from domain.sales import SaleDefinition
from runtime.redis.channel import Channel

PUT_ATTEMPTS_MAX = 5
SCAN_COUNT = 500

log = structlog.get_logger(__name__)


class MalformedDocument(Exception):
    """The document of a sale cannot be decoded."""


class DocumentContended(TimeoutError):
    """Other processes changed the document at each attempt to put it; repeat later."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """A message of the channel: the sale's document changed, or the sale has left Redis."""

    sale_id: UUID
    gone: bool


class SaleDocuments:
    """Reads, puts and announces documents. Every step may be repeated."""

    def __init__(self, redis: Redis) -> None:
        """Uses the client, does not own it."""
        self._redis = redis

    # Reading

    async def read(self, sale_ids: Sequence[UUID]) -> list[SaleDefinition | None]:
        """Definitions in the order asked for; None for a missing document and, with a log line, for a malformed one."""
        if not sale_ids:
            return []
        return [
            _decode_or_log(sale_id, document)
            for sale_id, document in zip(sale_ids, await self.read_raw(sale_ids), strict=True)
        ]

    async def read_raw(self, sale_ids: Sequence[UUID]) -> list[bytes | None]:
        """Encoded documents, None for a missing one; for callers that treat a malformed document in their own way."""
        return cast(list[bytes | None], await self._redis.mget([topology.sale_key(sale_id) for sale_id in sale_ids]))

    async def versions(self, sale_ids: Sequence[UUID]) -> list[tuple[int, int] | None]:
        """(epoch, version) of each document; None for a missing document and for a malformed one."""
        return [_version(document) for document in await self.read_raw(sale_ids)] if sale_ids else []

    async def listed(self) -> set[UUID]:
        """Ids of all published sales."""
        return {sale_id async for sale_id in self.scan()}

    async def scan(self) -> AsyncIterator[UUID]:
        """Ids of published sales, a part at a time; an id that is listed or removed meanwhile may be missing."""
        async for member in self._redis.sscan_iter(topology.SALES_KEY, count=SCAN_COUNT):
            sale_id = ids.parse_uuid(member.decode("ascii", "replace"))
            if sale_id is None:
                log.error("listed sale id is malformed", member=repr(member))
                continue
            yield sale_id

    def channel(
        self, *, opened: Callable[[], Awaitable[None]], changed: Callable[[Announcement], Awaitable[None]]
    ) -> Channel:
        """The channel of announcements, to be followed by the caller. Malformed messages are ignored.

        `opened` is called after every (re)connection, since announcements may have been missed.
        """

        async def received(payload: bytes) -> None:
            announcement = decode_announcement(payload)
            if announcement is not None:
                await changed(announcement)

        return Channel(self._redis, topology.SALES_CHANNEL, opened=opened, received=received)

    # Changing

    async def announce(self, definition: SaleDefinition) -> None:
        """Put the document unless there is a newer one, list the sale, and publish the change; DocumentContended."""
        await self.put(definition)
        await self._redis.sadd(topology.SALES_KEY, str(definition.sale_id))
        await self._redis.publish(topology.SALES_CHANNEL, str(definition.sale_id))

    async def put(self, definition: SaleDefinition) -> None:
        """Put the document unless there is one of the same or a newer version; DocumentContended."""
        key = topology.sale_key(definition.sale_id)
        async with self._redis.pipeline(transaction=True) as pipeline:
            for _ in range(PUT_ATTEMPTS_MAX):
                await pipeline.watch(key)
                known = _version(cast(bytes | None, await pipeline.get(key)))
                if known is not None and known >= (definition.epoch, definition.version):
                    return
                pipeline.multi()  # type: ignore[no-untyped-call]
                pipeline.set(key, orjson.dumps(definition.as_document()))
                try:
                    await pipeline.execute()
                    return
                except WatchError:
                    continue  # another process put a document; ours may be the older one now
        raise DocumentContended(f"document of sale {definition.sale_id}")

    async def remove(self, sale_id: UUID) -> None:
        """Remove the document and publish that the sale has left Redis. The sale stays listed."""
        await self._redis.unlink(topology.sale_key(sale_id))
        await self._redis.publish(topology.SALES_CHANNEL, f"{topology.SALE_GONE}{sale_id}")

    async def unlist(self, sale_id: UUID) -> None:
        """Remove the sale from the list."""
        await self._redis.srem(topology.SALES_KEY, str(sale_id))


def decode_document(document: bytes) -> SaleDefinition:
    """Decode a document; MalformedDocument."""
    try:
        return SaleDefinition.from_document(orjson.loads(document))
    except (KeyError, ValueError, TypeError) as error:
        raise MalformedDocument(repr(error)) from error


def decode_announcement(payload: bytes) -> Announcement | None:
    """Decode a message of the channel `topology.SALES_CHANNEL`; None for a malformed one."""
    text = payload.decode("ascii", "replace")
    sale_id = ids.parse_uuid(text.removeprefix(topology.SALE_GONE))
    return None if sale_id is None else Announcement(sale_id, gone=text.startswith(topology.SALE_GONE))


def _decode_or_log(sale_id: UUID, document: bytes | None) -> SaleDefinition | None:
    if document is None:
        return None
    try:
        return decode_document(document)
    except MalformedDocument as error:
        log.error("sale document is malformed", sale_id=str(sale_id), error=str(error))
        return None


def _version(document: bytes | None) -> tuple[int, int] | None:
    """(epoch, version); None for a missing or malformed document, which any `put` may replace."""
    if document is None:
        return None
    try:
        members = orjson.loads(document)
        return int(members["epoch"]), int(members["version"])
    except (KeyError, TypeError, ValueError):
        return None
