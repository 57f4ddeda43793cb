"""Dead letters over HTTP: what workers gave up is listed, shown, put back once, removed."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from domain import topology
from runtime.queue import RedisStreamsQueue
from runtime.queue.redis_streams import dead_key, stream_key
from tests.fixtures.fix_backoffice import BackofficeProcess, Staff

QUEUE = topology.order_queue(2)


class Queues:
    """The queue the backoffice looks into."""

    def __init__(self, url: str, client: redis.Redis) -> None:
        self.port = RedisStreamsQueue(url, length_max=100, dead_letters_max=100)
        self.client = client

    async def kill(self, body: bytes, *, queue: str = QUEUE, reasons: tuple[str, ...] = ("no such sale",)) -> None:
        """A message that fails with these reasons, the last one for good."""
        await self.port.publish(queue, body, message_id="m-1", headers={"kind": "orders"})
        async with self.port.consume(queue, prefetch=1) as consumer:
            for reason in reasons[:-1]:
                (delivery,) = await consumer.next_batch(count_max=1, wait_s=5)
                await delivery.retry(0, reason)
            (delivery,) = await consumer.next_batch(count_max=1, wait_s=5)
            await delivery.dead_letter(reasons[-1])

    def waiting(self, queue: str = QUEUE) -> int:
        return int(self.client.xlen(stream_key(queue)))

    def dead(self, queue: str = QUEUE) -> int:
        return int(self.client.xlen(dead_key(queue)))


@pytest.fixture
async def queues(backoffice: BackofficeProcess, redis_client: redis.Redis) -> Any:
    queues = Queues(backoffice.redis_url, redis_client)
    yield queues
    await queues.port.close()


@pytest.fixture
def many() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


async def test_list_and_look(staff: Staff, queues: Queues) -> None:
    assert staff.http.get("/v1/dead-letters").json() == {"items": [], "next_cursor": None}
    await queues.kill(b'{"order": 1}', reasons=("first", "second"))
    (item,) = staff.http.get("/v1/dead-letters").json()["items"]
    assert (item["queue"], item["message_id"], item["reason"]) == (QUEUE, "m-1", "second")
    assert (item["attempt"], item["replayable"]) == (2, True)
    assert item["died_at"].endswith("Z") and item["first_seen_at"] <= item["died_at"]
    whole = staff.http.get(f"/v1/dead-letters/{item['id']}").json()
    assert {name: whole[name] for name in item} == item
    assert [failure["reason"] for failure in whole["history"]] == ["first", "second"]
    assert whole["headers"] == {"kind": "orders"}
    assert whole["body"] == '{"order": 1}'
    assert base64.b64decode(whole["body_base64"]) == b'{"order": 1}'
    await queues.kill(b"\xff\x00", queue=topology.order_queue(3))
    (item,) = staff.http.get("/v1/dead-letters", params={"queue": topology.order_queue(3)}).json()["items"]
    whole = staff.http.get(f"/v1/dead-letters/{item['id']}").json()
    assert whole["body"] is None
    assert base64.b64decode(whole["body_base64"]) == b"\xff\x00"


async def test_pages(staff: Staff, queues: Queues) -> None:
    for number in range(5):
        await queues.kill(str(number).encode(), queue=topology.order_queue(number % 2))
    seen: list[str] = []
    cursor: str | None = None
    while True:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = staff.http.get("/v1/dead-letters", params=query).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 5
    answer = staff.http.get("/v1/dead-letters", params={"cursor": "nonsense"})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")


async def test_replay_is_done_once(staff: Staff, queues: Queues, many: ThreadPoolExecutor) -> None:
    await queues.kill(b"x")
    (item,) = staff.http.get("/v1/dead-letters").json()["items"]
    replay = f"/v1/dead-letters/{item['id']}/replay"
    answers = list(many.map(lambda _: staff.http.post(replay), range(8)))
    assert [(answer.status_code, answer.json()) for answer in answers] == [
        (200, {"id": item["id"], "replayed": True})
    ] * 8
    assert (queues.waiting(), queues.dead()) == (1, 0)
    assert staff.http.get(f"/v1/dead-letters/{item['id']}").status_code == 404


async def test_delete(staff: Staff, queues: Queues) -> None:
    await queues.kill(b"x")
    (item,) = staff.http.get("/v1/dead-letters").json()["items"]
    answer = staff.http.delete(f"/v1/dead-letters/{item['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert (queues.waiting(), queues.dead()) == (0, 0)
    for answer in (
        staff.http.delete(f"/v1/dead-letters/{item['id']}"),
        staff.http.post(f"/v1/dead-letters/{item['id']}/replay"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_what_never_was_a_message_cannot_be_replayed(staff: Staff, queues: Queues) -> None:
    await queues.port.dead_letters.add(topology.POISON_ENTRIES, b"x", message_id="1-0", reason="malformed")
    (item,) = staff.http.get("/v1/dead-letters").json()["items"]
    assert (item["attempt"], item["replayable"]) == (0, False)
    for _ in range(2):
        answer = staff.http.post(f"/v1/dead-letters/{item['id']}/replay")
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert queues.dead(topology.POISON_ENTRIES) == 1


@pytest.mark.parametrize(
    "letter_id", ["x", "orders.shard.0~1-1", "~1-1", "orders.shard.0~x-1", "a" * 500, "%00", "%E4"]
)
def test_ids_that_are_none(staff: Staff, letter_id: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/replay")):
        answer = staff.http.request(method, f"/v1/dead-letters/{letter_id}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
