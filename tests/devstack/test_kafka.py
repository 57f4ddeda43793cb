"""The embedded Kafka: its pinned jars, its class archive, its topics after a restart."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from devstack.kafka import KafkaServer, answers, class_archive
from devstack.kafka_jars import CACHE_VARIABLE, KafkaNotProvided, check_sums, kafka_jars, pinned_sums, version
from domain.topology import TOPICS
from runtime.event_log import NewRecord, open_event_log


def test_the_jars_are_the_pinned_ones() -> None:
    found = {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in kafka_jars().glob("*.jar")}
    assert found == pinned_sums()
    assert f"kafka_2.13-{version()}.jar" in found


def test_a_jar_with_another_sum_is_refused() -> None:
    sums = pinned_sums()
    first = min(sums)
    for found in ({**sums, first: "0" * 64}, {**sums, "more.jar": "0" * 64}, {**sums} | {first: ""}):
        with pytest.raises(KafkaNotProvided, match=r"more\.jar" if "more.jar" in found else first):
            check_sums(found)


def test_without_java_or_maven_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KafkaNotProvided, match="apt-get install maven"):
        kafka_jars()
    monkeypatch.delenv(CACHE_VARIABLE)
    with pytest.raises(KafkaNotProvided, match="apt-get install openjdk"):
        class_archive()


async def test_a_killed_server_has_its_topics_and_records_again(own_kafka: KafkaServer) -> None:
    from runtime.event_log.kafka_access import KafkaAccess
    from runtime.event_log.kafka_topics import TopicSettings, create_topics

    assert await create_topics(own_kafka.url, TOPICS, KafkaAccess(), TopicSettings()) == [t.name for t in TOPICS]
    log = open_event_log(own_kafka.url, TOPICS)
    await log.append(TOPICS[0].name, 15, [NewRecord("k", b"v")])
    own_kafka.kill()
    assert not answers(own_kafka.port)
    own_kafka.start()
    assert await create_topics(own_kafka.url, TOPICS, KafkaAccess(), TopicSettings()) == []
    async with log.reader(None, TOPICS[0].name, (15,)) as reader:
        [record] = await reader.next_batch(count_max=10, wait_s=5)
    assert record.value == b"v"
    await log.close()
