"""Live figures: content, access, lifetime and number of streams, cost of slow viewers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson
import pytest
import redis

from backoffice.figures.documents import Rates
from backoffice.figures.service import USER_VIEWERS_MAX, Live
from backoffice.web.messages import Call, Caller, Role
from devstack.servers import RedisServer
from domain import ids, topology
from domain.orders import OrderEntry, OrderLine, OrderStatus, encode_entry
from domain.sales import Stock
from runtime.redis.client import redis_client as redis_client_of
from runtime.tokens.keys import load_staff_keys, mint_staff_token
from runtime.tokens.session_ends import publish
from tests.fixtures.fix_backoffice import BackofficeProcess, Staff
from tests.fixtures.fix_databases import Databases

PATH = "/v1/operations/live"


def events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """(name, data) of each event, as the HTML standard reads a stream."""
    name, data = "message", ""
    for line in lines:
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            data += line[6:]
        elif not line and data:
            yield name, orjson.loads(data)
            name, data = "message", ""


def first(staff: Staff) -> dict[str, Any]:
    """One event's figures."""
    with staff.http.stream("GET", PATH) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-store"
        name, figures = next(events(answer.iter_lines()))
    assert name == "figures"
    return dict(figures)


def entry_of(at_ms: int) -> bytes:
    """A lane entry of a change at this time."""
    user, sale = uuid4(), ids.new_uuid7()
    order_id = ids.order_id(unix_ms=at_ms, lane=2, bucket=topology.bucket_of_user(user), random=1)
    lines = (OrderLine(0, "SKU-1", 1, 1999),)
    return encode_entry(
        OrderEntry(order_id, user, sale, "key", "EUR", lines, OrderStatus.RESERVED, 1, 1, at_ms, at_ms, at_ms)
    )


def test_a_sale_in_figures(staff: Staff, redis_client: redis.Redis) -> None:
    sale = staff.open_sale(stock=10, skus=2, name="Shown")
    draft = staff.draft()
    lane = topology.lane_state_key(topology.Topology().lanes_of_sale(UUID(sale["id"]), count=1)[0])
    counters = Stock(available=4, reserved=3, paid=2, rejected=1, allotted=10, borrowed=0, lent=0)
    redis_client.hset(lane, topology.stock_field(UUID(sale["id"]), 1), counters.pack())
    redis_client.hset(topology.ACCEPTED_KEY, sale["id"], 6)
    redis_client.hset(topology.REFUSED_KEY_PREFIX + sale["id"], mapping={"sold_out": 12, "rate_limited": 3})
    now_ms = redis_client.time()[0] * 1000
    verdict = {"at_ms": now_ms, "A": True, "B": None, "deep_at_ms": now_ms - 30_000}
    redis_client.hset(topology.VERDICTS_KEY, sale["id"], json.dumps(verdict))
    redis_client.xadd(topology.lane_stream_key(2), {"e": entry_of(redis_client.time()[0] * 1000 - 60_000)}, id="1-0")
    redis_client.xadd(topology.lane_stream_key(3), {"e": b"no entry"}, id="1-0")
    figures = first(staff)
    (shown,) = figures["sales"]
    assert (shown["id"], shown["name"], shown["state"]) == (sale["id"], "Shown", "open")
    assert draft["id"] != shown["id"]
    assert shown["items"][0] == {
        "sku": sale["items"][0]["sku"],
        "allotted": 10,
        "available": 10,
        "reserved": 0,
        "paid": 0,
        "rejected": 0,
    }
    assert shown["items"][1] == {
        "sku": sale["items"][1]["sku"],
        "allotted": 10,
        "available": 4,
        "reserved": 3,
        "paid": 2,
        "rejected": 1,
    }
    assert (shown["accepted"], shown["refused"]) == (6, {"rate_limited": 3, "sold_out": 12})
    assert shown["invariants"] == {"A": True, "B": None}
    assert figures["invariants"] == {"G": None}
    assert 30.0 <= shown["deep_look_age_s"] < 60.0
    assert [(lane["lane"], lane["unrelayed"]) for lane in figures["lanes"]] == [(0, 0), (1, 0), (2, 1), (3, 1)]
    ages_s = [lane["age_s"] for lane in figures["lanes"]]
    assert 60.0 <= ages_s[2] < 90.0 and (ages_s[0], ages_s[1], ages_s[3]) == (0.0, 0.0, 0.0)
    assert figures["queues"] == [{"shard": shard, "messages": 0, "retrying": 0, "dead": 0} for shard in range(4)]
    assert figures["outboxes"] == [{"shard": shard, "rows": 0, "age_s": 0.0} for shard in range(4)]
    assert (figures["dead_letters"], figures["unavailable"], figures["sales_left_out"]) == (0, [], 0)


def test_the_verdict_on_money(staff: Staff, redis_client: redis.Redis) -> None:
    """Beside those of the sales; an old or malformed one counts as none."""
    now_ms = redis_client.time()[0] * 1000
    told: list[tuple[str, bool | None]] = [
        (json.dumps({"at_ms": now_ms, "G": True}), True),
        (json.dumps({"at_ms": now_ms, "G": False}), False),
        (json.dumps({"at_ms": now_ms - 60_000, "G": True}), None),
        (json.dumps({"at_ms": now_ms, "G": "true"}), None),
        ("no verdict", None),
    ]
    for raw, shown in told:
        redis_client.set(topology.MONEY_VERDICT_KEY, raw)
        assert first(staff)["invariants"] == {"G": shown}, raw


def test_figures_follow_what_happens(staff: Staff, redis_client: redis.Redis) -> None:
    sale = staff.open_sale()
    redis_client.hset(topology.ACCEPTED_KEY, sale["id"], 100)
    with staff.http.stream("GET", PATH) as answer:
        stream = events(answer.iter_lines())
        _, figures = next(stream)
        assert figures["sales"][0]["accepted_per_s"] is None  # a rate needs two samples
        redis_client.hset(topology.ACCEPTED_KEY, sale["id"], 200)
        while not (figures := next(stream)[1])["sales"][0]["accepted_per_s"]:
            pass
        assert figures["sales"][0]["accepted"] == 200
        staff.act(sale, "pause")
        while next(stream)[1]["sales"][0]["state"] != "paused":
            pass


def test_only_the_most_urgent_sales_are_shown(staff: Staff) -> None:
    made = [staff.open_sale() for _ in range(21)]
    staff.act(made[0], "pause")
    far = staff.open_sale(starts_at="2098-01-01T00:00:00Z")
    figures = first(staff)
    shown = {sale["id"] for sale in figures["sales"]}
    assert figures["sales_left_out"] == 1
    assert shown == {sale["id"] for sale in made[1:]}
    assert far["id"] not in shown


def test_a_lane_that_lost_a_sale_is_shown(staff: Staff, redis_client: redis.Redis) -> None:
    sale = staff.open_sale()
    redis_client.delete(*(topology.lane_state_key(lane) for lane in range(4)))
    (shown,) = first(staff)["sales"]
    assert (shown["id"], shown["stock_known"]) == (sale["id"], False)
    assert shown["items"] == [{"sku": sale["items"][0]["sku"]}]


@pytest.mark.parametrize("document", [b"{", b"[]", b'{"sale_id": 5}'])
def test_a_malformed_document_and_a_malformed_id_hide_no_other_sale(
    staff: Staff, redis_client: redis.Redis, document: bytes
) -> None:
    sale, damaged = staff.open_sale(), staff.open_sale()
    key = topology.sale_key(UUID(damaged["id"]))
    redis_client.sadd(topology.SALES_KEY, b"\xff not an id")
    for _ in range(5):
        redis_client.set(key, document)
        shown = first(staff)["sales"]
        if redis_client.get(key) == document:
            break  # else the synchroniser has put the document back meanwhile
    assert [one["id"] for one in shown] == [sale["id"]]


def test_head_opens_no_stream(staff: Staff) -> None:
    answer = staff.http.head(PATH)
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_stream_ends_with_its_token(backoffice: BackofficeProcess) -> None:
    key = load_staff_keys(backoffice.staff_key_file).signing
    token = mint_staff_token(key, user_id=uuid4(), role="staff", issuer="flashsale", ttl_s=3)
    with httpx.stream("GET", backoffice.url + PATH, headers={"Authorization": f"Bearer {token}"}, timeout=20) as answer:
        told = list(events(answer.iter_lines()))
    assert told[-1] == ("end", {"reason": "token_expired"})
    assert {name for name, _ in told[:-1]} == {"figures"}


def test_a_stream_ends_soon_after_the_sessions_of_its_caller(
    backoffice: BackofficeProcess, redis_client: redis.Redis
) -> None:
    key = load_staff_keys(backoffice.staff_key_file).signing
    user_id = uuid4()
    token = mint_staff_token(
        key, user_id=user_id, role="staff", issuer="flashsale", ttl_s=900, now_s=int(time.time()) - 10
    )
    with httpx.stream("GET", backoffice.url + PATH, headers={"Authorization": f"Bearer {token}"}, timeout=20) as answer:
        stream = events(answer.iter_lines())
        assert next(stream)[0] == "figures"
        asyncio.run(_end_sessions(backoffice.redis_url, user_id))
        told = list(stream)
    assert told[-1] == ("end", {"reason": "token_invalid"})
    assert redis_client.ping()


async def _end_sessions(url: str, user_id: UUID) -> None:
    client = redis_client_of(url)
    await publish(client, [(user_id, int(time.time() * 1000))])
    await client.aclose()


@pytest.fixture
def own(
    tmp_path: Path, redis_server: RedisServer, redis_client: redis.Redis, databases: Databases
) -> Iterator[BackofficeProcess]:
    """A backoffice of the test's own, not started yet."""
    assert redis_client
    process = BackofficeProcess(tmp_path, redis_server.url, databases)
    yield process
    process.kill()


def token_of(process: BackofficeProcess) -> str:
    key = load_staff_keys(process.staff_key_file).signing
    return mint_staff_token(key, user_id=uuid4(), role="staff", issuer="flashsale", ttl_s=900)


def resident_bytes(process: BackofficeProcess) -> int:
    assert process.process is not None
    pages = Path(f"/proc/{process.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096


class Viewer:
    """A raw connection with an open stream; reads only on `read_until`."""

    def __init__(self, port: int, token: str, *, buffer_bytes: int | None = None) -> None:
        self.socket = socket.socket()
        if buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(f"GET {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())

    def read_until(self, text: bytes) -> bytes:
        received = b""
        while text not in received:
            chunk = self.socket.recv(65536)
            assert chunk, received
            received += chunk
        return received

    def close(self) -> None:
        self.socket.close()


def test_viewers_are_bounded_and_make_room(own: BackofficeProcess) -> None:
    own.environ["FLASHSALE_LIVE_VIEWERS_MAX"] = "2"
    own.start()
    token = token_of(own)
    viewers = [Viewer(own.port, token) for _ in range(2)]
    for viewer in viewers:
        viewer.read_until(b"event: figures")
    headers = {"Authorization": f"Bearer {token}"}
    refused = httpx.get(own.url + PATH, headers=headers, timeout=10)
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert int(refused.headers["retry-after"]) > 0
    viewers[0].close()
    deadline = time.monotonic() + 10
    while httpx.head(own.url + PATH, headers=headers).status_code != 200:
        assert time.monotonic() < deadline
    assert own.stop() == 0
    # The stream ends with the reason and with a complete chunked body.
    assert viewers[1].read_until(b"0\r\n\r\n").count(b'event: end\ndata: {"reason":"draining"}') == 1


def test_one_user_does_not_hold_all_streams(own: BackofficeProcess) -> None:
    own.start()
    token = token_of(own)
    viewers = [Viewer(own.port, token) for _ in range(USER_VIEWERS_MAX)]
    for viewer in viewers:
        viewer.read_until(b"event: figures")
    refused = httpx.get(own.url + PATH, headers={"Authorization": f"Bearer {token}"}, timeout=10)
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert "Close one" in refused.json()["detail"]
    other = Viewer(own.port, token_of(own))
    other.read_until(b"event: figures")
    for viewer in (*viewers, other):
        viewer.close()


def test_many_viewers_and_some_that_do_not_read(own: BackofficeProcess) -> None:
    """200 viewers of large figures, half of which never read: other requests are answered, and memory stays bounded."""
    own.start()
    token = token_of(own)
    staff = Staff(own.url, token)
    for _ in range(4):
        staff.open_sale(skus=50)
    viewers = [Viewer(own.port, token_of(own), buffer_bytes=4096) for _ in range(200)]
    try:
        for viewer in viewers[:100]:
            viewer.read_until(b"event: figures")
        before = resident_bytes(own)
        for _ in range(5):
            for viewer in viewers[:100]:
                viewer.read_until(b"event: figures")
            assert httpx.get(own.url + "/livez", timeout=10).status_code == 200
            assert staff.http.get("/v1/sales").status_code == 200
        # Each slow viewer costs one event and its socket buffers.
        assert resident_bytes(own) - before < 30 * 1024 * 1024
        figures = first(staff)
        assert len(figures["sales"]) == 4 and figures["unavailable"] == []
    finally:
        for viewer in viewers:
            viewer.close()
    assert own.stop() == 0


def test_servers_that_are_down_are_named(own: BackofficeProcess, tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "own-redis")
    server.start()
    own.redis_url = server.url
    own.start()
    staff = Staff(own.url, token_of(own))
    try:
        with staff.http.stream("GET", PATH) as answer:
            stream = events(answer.iter_lines())
            assert next(stream)[1]["unavailable"] == []
            server.kill()
            while not (figures := next(stream)[1])["unavailable"]:
                pass
            assert figures["unavailable"] == ["redis", "queue"]
            assert (figures["at"], figures["lanes"], figures["queues"]) == (None, None, None)
            assert [outbox["shard"] for outbox in figures["outboxes"]] == [0, 1, 2, 3], "PostgreSQL answers"
            server.start()
            while next(stream)[1]["unavailable"]:  # recovers without intervention
                pass
    finally:
        own.kill()
        server.stop()


class Looks:
    """Stands in for the lookout and counts its reads."""

    def __init__(self) -> None:
        self.count = 0

    async def look(self) -> Any:
        self.count += 1
        raise RuntimeError("no figures today")


def _admit_all(authorization: str | None) -> Caller:
    raise AssertionError(f"{authorization} must be checked only after seconds")


@contextlib.asynccontextmanager
async def watched(live: Live, count: int) -> AsyncIterator[list[Any]]:
    caller = Caller(uuid4(), Role.STAFF, int(time.time()) + 900)
    call = Call("GET", PATH, {}, {}, {"authorization": "Bearer x"}, b"", "127.0.0.1", caller)
    viewers: list[Any] = [live.watch(call) for _ in range(count)]
    yield viewers
    for viewer in viewers:
        viewer.close()


async def test_one_sampler_serves_all_viewers_and_stops_after_the_last_one() -> None:
    looks: Any = Looks()
    live = Live(looks, _admit_all, viewers_max=10)
    async with watched(live, 10) as viewers:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert looks.count == 1
        # A viewer holds one event: the newest one replaces an unread one.
        for number in range(1000):
            viewers[0].show(b"%d" % number)
        assert await viewers[0].next_piece() == b"999"
    assert live.viewers == 0
    before = looks.count
    await asyncio.sleep(0)
    assert looks.count == before and live._sampler is None


def test_rates() -> None:
    rates = Rates()
    assert rates.per_s({"a": 100}, 10.0) == {"a": None}
    assert rates.per_s({"a": 150, "b": 1}, 11.0) == {"a": 50.0, "b": None}
    assert rates.per_s({"a": 150}, 15.0) == {"a": 10.0}
    assert rates.per_s({"a": 250}, 19.9) == {"a": 20.4}  # the first sample has left the window
    assert rates.per_s({"a": 3}, 20.9) == {"a": None}  # Redis was emptied
    assert rates.per_s({"b": 5}, 21.0) == {"b": None}  # the name was forgotten
