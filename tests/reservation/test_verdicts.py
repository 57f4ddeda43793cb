"""Verdicts as reports read them: recent, old, from the future, malformed."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest
import redis
import redis.asyncio

from devstack.servers import RedisServer
from domain import topology
from reservation.verdicts import VERDICT_AGE_MS_MAX, Judged, decode_verdict, publish_verdicts, read_verdict

NOW_MS = 1_800_000_000_000


@pytest.mark.parametrize(
    ("age_ms", "judged"),
    [
        (0, Judged(a=True, b=False)),
        (VERDICT_AGE_MS_MAX, Judged(a=True, b=False)),
        (VERDICT_AGE_MS_MAX + 1, Judged()),
        (-VERDICT_AGE_MS_MAX - 1, Judged()),
    ],
)
def test_a_verdict_counts_while_it_is_recent(age_ms: int, judged: Judged) -> None:
    raw = json.dumps({"at_ms": NOW_MS - age_ms, "A": True, "B": False}).encode()
    assert decode_verdict(raw, NOW_MS) == judged


@pytest.mark.parametrize("raw", [None, b"", b"{", b"[]", b"{}", b'{"at_ms": "x", "A": true, "B": true}'])
def test_a_malformed_verdict_counts_as_none(raw: bytes | None) -> None:
    assert decode_verdict(raw, NOW_MS) == Judged()


def test_only_booleans_are_judgements() -> None:
    raw = json.dumps({"at_ms": NOW_MS, "A": 1, "B": None}).encode()
    assert decode_verdict(raw, NOW_MS) == Judged()


@pytest.mark.parametrize(
    ("age_ms", "deep_at_ms", "shown"),
    [
        (0, NOW_MS - 90_000, NOW_MS - 90_000),
        (VERDICT_AGE_MS_MAX + 1, NOW_MS - 90_000, None),
        (0, None, None),
        (0, "1", None),
        (0, True, None),
        (0, -1, None),
        (0, 10**18, None),
    ],
)
def test_a_verdict_has_the_age_of_its_deep_look(age_ms: int, deep_at_ms: object, shown: int | None) -> None:
    raw = json.dumps({"at_ms": NOW_MS - age_ms, "A": True, "B": True, "deep_at_ms": deep_at_ms}).encode()
    assert decode_verdict(raw, NOW_MS).deep_at_ms == shown


async def test_published_verdicts_are_read_by_the_clock_of_redis(
    script_redis: redis.Redis, script_redis_server: RedisServer
) -> None:
    recent, old = uuid4(), uuid4()
    now_ms = int(script_redis.time()[0]) * 1000
    documents = {
        recent: {"at_ms": now_ms, "A": True, "B": True},
        old: {"at_ms": now_ms - 60_000, "A": True, "B": True},
    }
    async with redis.asyncio.Redis(port=script_redis_server.port) as client:
        await publish_verdicts(client, documents)
        assert await read_verdict(client, recent) == Judged(a=True, b=True)
        assert await read_verdict(client, old) == Judged()
        assert await read_verdict(client, uuid4()) == Judged()
        await publish_verdicts(client, {})
    assert script_redis.hlen(topology.VERDICTS_KEY) == 2
