"""The parts of the event log's figure run on a real broker; how fast they are is not asserted."""

from __future__ import annotations

from devstack.kafka import KafkaServer
from perf.event_log import SPEC, append, perf_tool
from tests.fixtures.fix_kafka import make_empty


async def test_both_producers(kafka_server: KafkaServer) -> None:
    await make_empty(kafka_server.url, (SPEC,))
    ours = await append(kafka_server.url, 0.3)
    assert ours["events"] >= 16_000 and ours["per_s"] > 0
    assert perf_tool(kafka_server.address, 2_000) > 0
