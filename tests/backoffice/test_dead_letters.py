"""Dead letters over HTTP: messages that workers gave up are listed, shown, put back once, removed."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import SecretStr

from domain import topology
from runtime.dead_letters import NewLetter, open_dead_letters
from runtime.queue import Failure, FailureKind, open_queue
from tests.fixtures.fix_backoffice import BackofficeProcess, Staff

QUEUE = topology.order_queue(2)
KIND = FailureKind.REFUSED_BY_DATABASE


class Queues:
    """The queues and the dead letters of the backoffice."""

    def __init__(self, backoffice: BackofficeProcess) -> None:
        self.letters = open_dead_letters(SecretStr(backoffice.databases.catalogue_dsn))
        self.queue = open_queue(backoffice.redis_url, topology.Topology().queues)

    async def kill(
        self, body: bytes, *, queue: str = QUEUE, message_id: str = "m-1", reasons: tuple[str, ...] = ("no such sale",)
    ) -> str:
        """A message that failed with these reasons, the last one for good; the letter's id."""
        now_ms = int(time.time() * 1000)
        history = tuple(Failure(now_ms, KIND, reason) for reason in reasons)
        return await self.letters.add(
            NewLetter(
                queue=queue, message_id=message_id, body=body, headers={"kind": "orders"}, kind=KIND, reason=reasons[-1],
                attempts=len(reasons), first_seen_ms=now_ms - 1000, history=history,
            )
        )  # fmt: skip

    async def waiting(self, queue: str = QUEUE) -> int:
        return (await self.queue.depth(queue)).messages

    async def dead(self, queue: str = QUEUE) -> int:
        return (await self.letters.count()).get(queue, 0)


@pytest.fixture
async def queues(backoffice: BackofficeProcess) -> Any:
    queues = Queues(backoffice)
    yield queues
    await queues.letters.close()
    await queues.queue.close()


@pytest.fixture
def many() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


async def test_list_and_look(staff: Staff, queues: Queues) -> None:
    assert staff.http.get("/v1/dead-letters").json() == {"items": [], "next_cursor": None}
    await queues.kill(b'{"order": 1}', reasons=("first", "second"))
    (item,) = staff.http.get("/v1/dead-letters").json()["items"]
    assert (item["queue"], item["message_id"], item["reason"]) == (QUEUE, "m-1", "second")
    assert (item["kind"], item["attempt"], item["replayable"]) == ("refused_by_database", 2, True)
    assert item["died_at"].endswith("Z") and item["first_seen_at"] <= item["died_at"]
    whole = staff.http.get(f"/v1/dead-letters/{item['id']}").json()
    assert {name: whole[name] for name in item} == item
    assert [failure["reason"] for failure in whole["history"]] == ["first", "second"]
    assert {failure["kind"] for failure in whole["history"]} == {"refused_by_database"}
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
        await queues.kill(b"x", queue=topology.order_queue(number % 2), message_id=f"m-{number}")
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
    assert [item["message_id"] for item in staff.http.get("/v1/dead-letters").json()["items"]] == [
        f"m-{number}" for number in range(5)
    ]
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
    assert (await queues.waiting(), await queues.dead()) == (1, 0)
    assert staff.http.get(f"/v1/dead-letters/{item['id']}").status_code == 404
    async with queues.queue.consume(QUEUE, prefetch=1) as consumer:
        (delivery,) = await consumer.next_batch(count_max=1, wait_s=5)
        assert (delivery.body, delivery.message_id, delivery.headers) == (b"x", "m-1", {"kind": "orders"})
        assert (delivery.attempt, delivery.history[-1].reason) == (1, "no such sale")


async def test_a_letter_in_a_replay_that_never_ends_is_there_and_the_caller_is_told(
    staff: Staff, queues: Queues
) -> None:
    """Another process holds the claim: neither 404 nor a second message."""
    letter_id = await queues.kill(b"x")
    claim = await queues.letters.claim(letter_id, lease_ms=60_000)
    assert claim is not None
    answer = await asyncio.to_thread(staff.http.post, f"/v1/dead-letters/{letter_id}/replay")
    assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")
    assert "Try again" in answer.json()["detail"] and answer.headers["retry-after"] == "1"
    assert staff.http.get(f"/v1/dead-letters/{letter_id}").status_code == 200
    assert (await queues.waiting(), await queues.dead()) == (0, 1)
    await queues.letters.release(claim)
    assert staff.http.post(f"/v1/dead-letters/{letter_id}/replay").status_code == 200
    assert (await queues.waiting(), await queues.dead()) == (1, 0)


async def test_delete(staff: Staff, queues: Queues) -> None:
    await queues.kill(b"x")
    (item,) = staff.http.get("/v1/dead-letters").json()["items"]
    answer = staff.http.delete(f"/v1/dead-letters/{item['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await queues.waiting(), await queues.dead()) == (0, 0)
    for answer in (
        staff.http.delete(f"/v1/dead-letters/{item['id']}"),
        staff.http.post(f"/v1/dead-letters/{item['id']}/replay"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_a_letter_of_a_queue_that_is_gone_cannot_be_replayed(staff: Staff, queues: Queues) -> None:
    letter_id = await queues.kill(b"body", queue="orders.shard.99")
    problem = staff.http.post(f"/v1/dead-letters/{letter_id}/replay").json()
    assert (problem["code"], problem["errors"][0]["pointer"]) == ("validation_failed", "/letter_id")
    assert "does not have" in problem["errors"][0]["detail"]
    assert staff.http.delete(f"/v1/dead-letters/{letter_id}").status_code == 204


async def test_bytes_that_were_never_a_message_cannot_be_replayed(staff: Staff, queues: Queues) -> None:
    await queues.letters.add(
        NewLetter(
            queue=topology.POISON_ENTRIES, message_id="1-0", body=b"x", kind=FailureKind.UNROUTABLE, reason="malformed",
            replayable=False,
        )
    )  # fmt: skip
    (item,) = staff.http.get("/v1/dead-letters").json()["items"]
    assert (item["attempt"], item["replayable"]) == (0, False)
    for _ in range(2):
        answer = staff.http.post(f"/v1/dead-letters/{item['id']}/replay")
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert await queues.dead(topology.POISON_ENTRIES) == 1


@pytest.mark.parametrize(
    "letter_id", ["x", "orders.shard.0~1-1", "~1-1", "orders.shard.0~x-1", "a" * 500, "1", "01", "9" * 20, "%00", "%E4"]
)
def test_ids_that_are_none(staff: Staff, letter_id: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/replay")):
        answer = staff.http.request(method, f"/v1/dead-letters/{letter_id}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
