"""The event log on Kafka: events a second through the producer and from the outbox, and the lag from end to end.

    python -m perf.event_log [--seconds 10] [--pairs 3] [--events 100000] [--rate 1000] [--save] [--json] [--gate]

Three parts, each on a real broker on this machine. `producer`: the port's `append` beside Kafka's own
kafka-producer-perf-test, in turns; and beside confluent-kafka where it is installed (it is no dependency). `outbox`:
the stack's dispatcher empties outboxes that were filled while it was stopped. `lag`: orders at a steady rate, and a
reader that compares the time of each event with its own clock.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import psycopg

from devstack.kafka import KafkaServer, java_command
from devstack.plan import EVENT_LOG_VARIABLE
from domain.topology import DESTINATION_ORDER_EVENTS, OUTBOX_PARTITIONS, TOPIC_ORDERS, TOPICS, TopicSpec
from perf.load import Load, require_all_accepted
from perf.processes import cpu_us, tree
from perf.results import Figure, Target, add_options, conclude, progress
from perf.whole_stack import WholeStack, whole_stack
from runtime.event_log import APPEND_RECORDS_MAX, EventLog, KafkaAccess, NewRecord, open_event_log
from runtime.event_log.kafka_topics import TopicSettings, create_topics

VALUE_BYTES = 256
SPEC = TopicSpec("perf.v1", OUTBOX_PARTITIONS)
PRODUCER_LEAST, RATIO_LEAST, OUTBOX_LEAST, LAG_S_MAX = 100_000, 0.5, 15_000, 1.0
EVENTS_IN_A_ROW = 20  # a writer's batch has about so many for a partition
TOOL_S_MAX = 300.0
DRAIN_S_MAX = 300.0
WARM_UP_S = 3.0  # of the lag: the pipeline starts with the first orders
USERS = 20_000
METHOD = (
    "Kafka in KRaft mode with one replica on this machine. Producer: 256-byte values, acks=all, 16 partitions; the port's "
    "append (1,000 records each, one append under way for each partition, idempotent, keys of 36 bytes) and "
    "kafka-producer-perf-test (acks=all, its own batches, no keys) in turns, medians of their rates; the ratio is the "
    "median over the pairs. Outbox: rows of 20 events in all shards, written while the dispatcher is stopped; the time "
    "from its continuation to empty outboxes. Lag: orders in an open loop, the event's time (set by Redis) compared with "
    "the reader's clock on the same machine, without the first 3 s."
)


def main() -> int:
    options = _options()
    result: dict[str, Any] = {}
    targets: list[Target] = []
    with progress() as say:
        if "producer" in options.parts:
            result["producer"] = producer = measure_producers(seconds=options.seconds, pairs=options.pairs, say=say)
            targets += [
                Target("events through the producer", producer["append_per_s"], "a second", least=PRODUCER_LEAST),
                Target("ratio to kafka-producer-perf-test", producer["ratio"], "", least=RATIO_LEAST),
            ]
        if {"outbox", "lag"} & set(options.parts):
            os.environ[EVENT_LOG_VARIABLE] = "kafka"
            with whole_stack(say, users=USERS) as stack:
                if "lag" in options.parts:
                    result["lag"] = lag = asyncio.run(
                        measure_lag(stack, seconds=options.seconds, rate=options.rate, say=say)
                    )
                    targets.append(Target("lag from order to reader, p99", lag["p99_s"], "s", most=LAG_S_MAX))
                if "outbox" in options.parts:
                    result["outbox"] = outbox = measure_outbox(stack, events=options.events, say=say)
                    targets.append(
                        Target("events from the outbox to Kafka", outbox["per_s"], "a second", least=OUTBOX_LEAST)
                    )
    return conclude(Figure("event_log", METHOD, targets, result), options, as_text(result))


def measure_producers(*, seconds: float, pairs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Ours, Kafka's tool and confluent-kafka in turns, on a broker of their own."""
    with tempfile.TemporaryDirectory(prefix="perf-kafka-", dir=Path.home()) as folder:
        server = KafkaServer(Path(folder), heap_mb=512)
        server.start()
        try:
            asyncio.run(create_topics(server.url, (SPEC,), KafkaAccess(), TopicSettings()))
            asyncio.run(append(server.url, min(1.0, seconds)))  # warms up the broker
            rounds: list[dict[str, Any]] = []
            for number in range(pairs):
                say(f"producers, pair {number + 1} of {pairs}")
                broker = cpu_us(tree(_pid(server)))
                ours = asyncio.run(append(server.url, seconds))
                ours["broker_us_an_event"] = round((cpu_us(tree(_pid(server))) - broker) / ours["events"], 2)
                theirs = perf_tool(server.address, int(ours["per_s"] * 1.5 * seconds))
                rounds.append(
                    {"append": ours, "perf_tool_per_s": theirs, "confluent_per_s": confluent(server, seconds)}
                )
        finally:
            server.stop()
    other = [each["confluent_per_s"] for each in rounds if each["confluent_per_s"] is not None]
    return {
        "append_per_s": statistics.median(each["append"]["per_s"] for each in rounds),
        "perf_tool_per_s": statistics.median(each["perf_tool_per_s"] for each in rounds),
        "confluent_per_s": statistics.median(other) if other else None,
        "ratio": statistics.median(each["append"]["per_s"] / each["perf_tool_per_s"] for each in rounds),
        "rounds": rounds,
    }


async def append(url: str, seconds: float) -> dict[str, Any]:
    """Events a second by the port's `append`, and processor time of this process for each."""
    log = open_event_log(url, (SPEC,))
    records = [
        NewRecord(f"{number:036d}", number.to_bytes(4, "big") + os.urandom(VALUE_BYTES - 4))
        for number in range(APPEND_RECORDS_MAX)
    ]
    events, before = 0, await _ends(log)
    began, cpu_began = time.perf_counter(), time.process_time()

    async def fill(partition: int) -> None:
        nonlocal events
        while time.perf_counter() < began + seconds:
            await log.append(SPEC.name, partition, records)
            events += len(records)

    await asyncio.gather(*map(fill, range(SPEC.partitions)))
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    assert sum((await _ends(log)).values()) - sum(before.values()) == events, (
        "not every acknowledged event is in the log"
    )
    await log.close()
    return {"events": events, "per_s": events / took_s, "client_us_an_event": round(cpu_s / events * 1e6, 2)}


async def _ends(log: EventLog) -> dict[int, int]:
    async with log.reader(None, SPEC.name, range(SPEC.partitions)) as reader:
        return {partition: lag.end for partition, lag in (await reader.lag()).items()}


def perf_tool(address: str, events: int) -> float:
    """Events a second by kafka-producer-perf-test, which also counts its own start-up of the client."""
    argv = [
        *java_command(heap_mb=256), "org.apache.kafka.tools.ProducerPerformance", "--topic", SPEC.name,
        "--num-records", str(events), "--record-size", str(VALUE_BYTES), "--throughput", "-1",
        "--producer-props", f"bootstrap.servers={address}", "acks=all",
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TOOL_S_MAX, check=True)
    return float(re.findall(r"([\d.]+) records/sec", done.stdout)[-1])


def confluent(server: KafkaServer, seconds: float) -> float | None:
    """Events a second by confluent-kafka with acks=all and idempotence; None where it is not installed."""
    try:
        kafka = importlib.import_module("confluent_kafka")
    except ModuleNotFoundError:
        return None
    producer = kafka.Producer(
        {"bootstrap.servers": server.address, "enable.idempotence": True, "acks": "all", "linger.ms": 5}
    )
    value, key, events, began = os.urandom(VALUE_BYTES), "0" * 36, 0, time.perf_counter()
    while time.perf_counter() < began + seconds:
        try:
            producer.produce(SPEC.name, value, key=key, partition=events % SPEC.partitions)
            events += 1
        except BufferError:
            producer.poll(0.01)
    producer.flush(30)
    return events / (time.perf_counter() - began)


def measure_outbox(stack: WholeStack, *, events: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Fill the outboxes while the dispatcher is stopped, then let it empty them."""
    pid = stack.stack.processes["dispatcher-0"]
    rows = events // (EVENTS_IN_A_ROW * len(stack.stack.shard_dsns))
    os.kill(pid, signal.SIGSTOP)
    try:
        for shard, dsn in enumerate(stack.stack.shard_dsns):
            say(f"filling the outbox of shard {shard}")
            _fill(dsn, rows)
    finally:
        os.kill(pid, signal.SIGCONT)
    began, cpu_began = time.perf_counter(), cpu_us(tree(pid))
    while any(_waiting(dsn) for dsn in stack.stack.shard_dsns):
        if time.perf_counter() > began + DRAIN_S_MAX:
            raise SystemExit(f"the outboxes were not empty after {DRAIN_S_MAX:.0f} s")
        time.sleep(0.05)
    took_s = time.perf_counter() - began
    sent = rows * EVENTS_IN_A_ROW * len(stack.stack.shard_dsns)
    used_us = cpu_us(tree(pid)) - cpu_began
    return {"events": sent, "per_s": sent / took_s, "dispatcher_us_an_event": round(used_us / sent, 2)}


def _fill(dsn: str, rows: int) -> None:
    def event(number: int) -> dict[str, Any]:
        key = f"{number:036d}"
        return {
            "id": f"{key}:1", "type": "order.reserved", "schema": 1, "key": key, "subject": key, "version": 1,
            "time_ms": 1, "data": {"order_id": key, "text": "x" * (VALUE_BYTES - 64)},
        }  # fmt: skip

    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO outbox (destination, partition, events) VALUES (%s, %s, %s)",
            [
                (
                    DESTINATION_ORDER_EVENTS,
                    row % OUTBOX_PARTITIONS,
                    orjson.dumps([event(row * EVENTS_IN_A_ROW + place) for place in range(EVENTS_IN_A_ROW)]).decode(),
                )
                for row in range(rows)
            ],
        )


def _waiting(dsn: str) -> bool:
    with psycopg.connect(dsn) as connection:
        return connection.execute("SELECT 1 FROM outbox LIMIT 1").fetchone() is not None


async def measure_lag(stack: WholeStack, *, seconds: float, rate: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds from an order's time to its event at a reader, while orders come at a steady rate."""
    log = open_event_log(stack.stack.event_log_url, TOPICS)
    lags: list[float] = []
    async with log.reader(None, TOPIC_ORDERS, range(OUTBOX_PARTITIONS)) as reader:
        await reader.skip({partition: lag.end for partition, lag in (await reader.lag()).items()})
        with Load(stack.aim, "lag", WARM_UP_S + seconds, 16, rate) as load:
            warm_at, ends_at = time.monotonic() + WARM_UP_S, time.monotonic() + WARM_UP_S + seconds + 5.0
            while time.monotonic() < ends_at:
                for record in await reader.next_batch(count_max=1_000, wait_s=0.5):
                    if time.monotonic() < warm_at:
                        continue
                    lags.append(time.time() - datetime.fromisoformat(record.headers["ce_time"]).timestamp())
                say(f"lag: {len(lags):,} events")
            final = await asyncio.to_thread(load.finish, stop=False)
    await log.close()
    require_all_accepted(final)
    lags.sort()
    return {
        "orders_per_s": final["accepted"] / (WARM_UP_S + seconds),
        "events": len(lags),
        "p50_s": lags[len(lags) // 2],
        "p99_s": lags[len(lags) * 99 // 100],
        "max_s": lags[-1],
    }


def _pid(server: KafkaServer) -> int:
    assert server.process is not None
    return server.process.pid


def as_text(result: dict[str, Any]) -> list[str]:
    """The figures of all parts."""
    lines = []
    if producer := result.get("producer"):
        other = producer["confluent_per_s"]
        lines.append(
            f"append {producer['append_per_s']:,.0f}/s, kafka-producer-perf-test {producer['perf_tool_per_s']:,.0f}/s, "
            f"confluent-kafka {'not installed' if other is None else f'{other:,.0f}/s'}"
        )
        ours = producer["rounds"][-1]["append"]
        lines.append(f"{ours['client_us_an_event']} us an event here, {ours['broker_us_an_event']} us in the broker")
    if outbox := result.get("outbox"):
        lines.append(
            f"outbox {outbox['per_s']:,.0f}/s, {outbox['dispatcher_us_an_event']} us an event in the dispatcher"
        )
    if lag := result.get("lag"):
        lines.append(
            f"lag at {lag['orders_per_s']:,.0f} orders/s: p50 {lag['p50_s']:.3f} s, p99 {lag['p99_s']:.3f} s, "
            f"max {lag['max_s']:.3f} s"
        )
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.event_log", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each run")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of our producer and Kafka's tool")
    parser.add_argument("--events", type=int, default=100_000, help="events in the outboxes")
    parser.add_argument("--rate", type=float, default=1_000.0, help="orders a second while the lag is measured")
    parser.add_argument(
        "--parts", nargs="+", default=["producer", "outbox", "lag"], choices=["producer", "outbox", "lag"]
    )
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
