"""Documents of sales on a real Redis: the newer one stays, changes are announced, malformed ones harm no other."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from uuid import UUID, uuid4

import orjson
import pytest
import redis
from redis.asyncio import Redis
from structlog.testing import capture_logs

from domain import topology
from domain.sales import SaleDefinition
from reservation.documents import (
    Announcement,
    DocumentContended,
    MalformedDocument,
    SaleDocuments,
    decode_announcement,
    decode_document,
)
from runtime.process import tasks
from tests.reservation.lane import make_sale


@pytest.fixture
def documents(script_client: Redis) -> SaleDocuments:
    return SaleDocuments(script_client)


def version_there(client: redis.Redis, sale_id: UUID) -> tuple[int, int]:
    document = client.get(topology.sale_key(sale_id))
    assert isinstance(document, bytes)
    definition = decode_document(document)
    return definition.epoch, definition.version


async def test_an_announced_sale_is_read_listed_and_told(documents: SaleDocuments, script_redis: redis.Redis) -> None:
    channel = script_redis.pubsub(ignore_subscribe_messages=True)
    channel.subscribe(topology.SALES_CHANNEL)
    channel.get_message(timeout=5)
    sale, other = make_sale(), uuid4()
    await documents.announce(sale)
    assert await documents.read([other, sale.sale_id]) == [None, sale]
    assert await documents.versions([other, sale.sale_id]) == [None, (1, 1)]
    assert await documents.listed() == {sale.sale_id}
    message = channel.get_message(timeout=5)
    assert message is not None
    assert decode_announcement(message["data"]) == Announcement(sale.sale_id, gone=False)
    await documents.remove(sale.sale_id)
    message = channel.get_message(timeout=5)
    assert message is not None
    assert decode_announcement(message["data"]) == Announcement(sale.sale_id, gone=True)
    assert await documents.read([sale.sale_id]) == [None] and await documents.listed() == {sale.sale_id}
    await documents.unlist(sale.sale_id)
    assert await documents.listed() == set()
    assert (await documents.read([]), await documents.versions([])) == ([], [])
    channel.close()


async def test_a_newer_document_is_never_replaced_by_an_older_one(
    documents: SaleDocuments, script_redis: redis.Redis
) -> None:
    sale = make_sale(epoch=2, version=5)
    await documents.put(sale)
    for epoch, version in ((1, 9), (2, 4), (2, 5)):
        await documents.put(replace(sale, epoch=epoch, version=version, name="older"))
        assert version_there(script_redis, sale.sale_id) == (2, 5)
    for epoch, version in ((2, 6), (3, 1)):
        await documents.put(replace(sale, epoch=epoch, version=version))
        assert version_there(script_redis, sale.sale_id) == (epoch, version)


async def test_of_many_versions_put_at_once_the_newest_stays(
    documents: SaleDocuments, script_redis: redis.Redis, seed: int
) -> None:
    sale = make_sale()
    versions = list(range(1, 13))
    random.Random(seed).shuffle(versions)

    async def put(version: int) -> None:
        while True:
            try:
                await documents.put(replace(sale, version=version))
                return
            except DocumentContended:
                continue

    await asyncio.gather(*(put(version) for version in versions))
    assert version_there(script_redis, sale.sale_id) == (1, 12)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"epoch": "x", "version": 1}', b'{"epoch": 9, "version": 9}'])
async def test_a_malformed_document_is_logged_and_the_others_are_read(
    documents: SaleDocuments, script_redis: redis.Redis, content: bytes
) -> None:
    sale, broken = make_sale(), make_sale()
    await documents.announce(sale)
    script_redis.set(topology.sale_key(broken.sale_id), content)
    with capture_logs() as logs:
        assert await documents.read([broken.sale_id, sale.sale_id]) == [None, sale]
    assert [(line["event"], line["sale_id"]) for line in logs] == [("sale document is malformed", str(broken.sale_id))]
    with pytest.raises(MalformedDocument):
        decode_document(content)


async def test_a_malformed_document_is_replaced(documents: SaleDocuments, script_redis: redis.Redis) -> None:
    sale = make_sale()
    script_redis.set(topology.sale_key(sale.sale_id), b"no JSON")
    await documents.put(sale)
    assert version_there(script_redis, sale.sale_id) == (1, 1)


async def test_a_malformed_id_in_the_list_is_passed_over(documents: SaleDocuments, script_redis: redis.Redis) -> None:
    sale = make_sale()
    await documents.announce(sale)
    script_redis.sadd(topology.SALES_KEY, b"\xff not an id")
    with capture_logs() as logs:
        assert await documents.listed() == {sale.sale_id}
    assert [line["event"] for line in logs] == ["listed sale id is malformed"]


async def test_announcements_are_followed(documents: SaleDocuments, script_redis: redis.Redis) -> None:
    calls: list[Announcement | None] = []

    async def opened() -> None:
        calls.append(None)

    async def changed(announcement: Announcement) -> None:
        calls.append(announcement)

    async def until(count: int) -> None:
        async with asyncio.timeout(20):
            while len(calls) < count:  # noqa: ASYNC110 - the channel runs in another task
                await asyncio.sleep(0.01)

    following = asyncio.create_task(documents.channel(opened=opened, changed=changed).follow())
    await until(1)
    sale = make_sale()
    script_redis.publish(topology.SALES_CHANNEL, b"\xff malformed")
    await documents.announce(sale)
    await documents.remove(sale.sale_id)
    await until(3)
    assert calls == [None, Announcement(sale.sale_id, gone=False), Announcement(sale.sale_id, gone=True)]
    await tasks.cancel(following)


@pytest.mark.parametrize("payload", [b"", b"-", b"no id", b"\xff\xfe", str(UUID(int=1)).encode() + b"x"])
def test_malformed_announcements_are_none(payload: bytes) -> None:
    assert decode_announcement(payload) is None


def test_documents_are_decoded_as_they_were_encoded() -> None:
    sale: SaleDefinition = make_sale(limits=(0, 3))
    assert decode_document(orjson.dumps(sale.as_document())) == sale
