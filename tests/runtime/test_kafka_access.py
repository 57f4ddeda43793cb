"""Login, encryption and topics of Kafka, on a real broker whose door asks for both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from devstack.children import free_port
from devstack.kafka import KafkaServer, Listener
from domain.topology import TopicSpec
from runtime.event_log import EventLogUnavailable, KafkaAccess, KafkaAccessError, NewRecord, open_event_log
from runtime.event_log.kafka_access import brokers
from runtime.event_log.kafka_topics import TopicsDiffer, TopicSettings, create_topics
from runtime.process.settings import KafkaMechanism, load_settings
from tests.fixtures.certificates import make_certificates
from tests.fixtures.fix_kafka import make_empty

SPECS = (TopicSpec("access.v1", 2),)
USER, PASSWORD = "flashsale", "correct-horse"
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, KafkaAccess]]:
    """URL of a door with TLS and SASL, and the access that it grants."""
    folder = tmp_path_factory.mktemp("secure-kafka")
    authority, certificate, key = make_certificates(folder)
    store = folder / "server-store.pem"
    store.touch(mode=0o600)
    store.write_bytes(key.read_bytes() + certificate.read_bytes() + authority.read_bytes())
    port = free_port()
    server = KafkaServer(
        folder / "kafka",
        quick_start=True,
        doors=[Listener("SECURE", port, port, "SASL_SSL")],
        properties={
            "sasl.enabled.mechanisms": "SCRAM-SHA-512,SCRAM-SHA-256",
            "listener.name.secure.scram-sha-512.sasl.jaas.config": _SCRAM,
            "listener.name.secure.scram-sha-256.sasl.jaas.config": _SCRAM,
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(store),
        },
    )
    server.start()
    try:
        for mechanism in (KafkaMechanism.SCRAM_SHA_512, KafkaMechanism.SCRAM_SHA_256):
            server.add_user(USER, PASSWORD, mechanism=mechanism)
        yield f"kafka://127.0.0.1:{port}", KafkaAccess(tls=True, ca_file=authority, username=USER, password=PASSWORD)
    finally:
        server.stop()


@pytest.mark.parametrize("mechanism", [KafkaMechanism.SCRAM_SHA_512, KafkaMechanism.SCRAM_SHA_256])
async def test_events_pass_a_door_with_tls_and_login(
    secure: tuple[str, KafkaAccess], mechanism: KafkaMechanism
) -> None:
    url, access = secure[0], replace(secure[1], mechanism=mechanism)
    await create_topics(url, SPECS, access, TopicSettings())
    log = open_event_log(url, SPECS, kafka=access)
    await log.append("access.v1", 1, [NewRecord("k", mechanism.encode())])
    async with log.reader(mechanism, "access.v1", (1,)) as reader:
        found = await reader.next_batch(count_max=10, wait_s=5)
        await reader.commit()
    assert found[-1].value == mechanism.encode()
    await log.close()


async def test_a_wrong_password_an_unknown_authority_and_no_encryption_are_refused(
    secure: tuple[str, KafkaAccess], tmp_path: Path
) -> None:
    url, access = secure
    stranger, _, _ = make_certificates(tmp_path)
    for wrong in (
        replace(access, password="wrong"),
        replace(access, username="nobody"),
        replace(access, ca_file=stranger),
        replace(access, tls=False),
        KafkaAccess(),
    ):
        log = open_event_log(url, SPECS, kafka=wrong)
        with pytest.raises(EventLogUnavailable):
            await log.append("access.v1", 0, [NewRecord("k", b"v")])
        with pytest.raises(EventLogUnavailable):
            async with log.reader("g", "access.v1", (0,)):
                pass
        await log.close()
        with pytest.raises(TopicsDiffer):
            await create_topics(url, SPECS, wrong, TopicSettings())


async def test_a_topic_that_differs_is_an_error_and_its_retention_follows_the_settings(
    kafka_server: KafkaServer,
) -> None:
    url = kafka_server.url
    await make_empty(url, SPECS)
    for specs, settings, word in (
        ((TopicSpec("access.v1", 3),), TopicSettings(), "has 2 partitions, and 3 are declared"),
        (SPECS, TopicSettings(min_insync_replicas=2), "FLASHSALE_KAFKA_MIN_INSYNC_REPLICAS"),
        ((TopicSpec("wide.v1", 1),), TopicSettings(replication_factor=3), "wide.v1 was not created"),
    ):
        with pytest.raises(TopicsDiffer, match=word):
            await create_topics(url, specs, KafkaAccess(), settings)
    shorter = (replace(SPECS[0], retention_s=60),)
    assert await create_topics(url, shorter, KafkaAccess(), TopicSettings(partition_mb_max=7)) == []
    found = await configuration(url, "access.v1")
    assert (found["retention.ms"], found["retention.bytes"]) == ("60000", str(7 * 1024 * 1024))
    assert found["message.timestamp.type"] == "LogAppendTime"


async def configuration(url: str, topic: str) -> dict[str, str]:
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    admin = AIOKafkaAdminClient(**KafkaAccess().arguments(url))
    await admin.start()
    try:
        [answer] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    finally:
        await admin.close()
    return {name: value for name, value, *_ in answer.resources[0][4]}


async def test_a_configuration_that_the_broker_refuses_is_an_error(kafka_server: KafkaServer) -> None:
    await make_empty(kafka_server.url, SPECS)
    impossible = [replace(SPECS[0], retention_s=-5)]
    with pytest.raises(TopicsDiffer, match=r"access\.v1 was not configured: .*retention\.ms"):
        await create_topics(kafka_server.url, impossible, KafkaAccess(), TopicSettings())


async def test_more_replicas_in_sync_than_replicas_create_no_topic(kafka_server: KafkaServer) -> None:
    missing = [TopicSpec("access.never", 1)]
    for _ in range(2):
        with pytest.raises(TopicsDiffer, match="FLASHSALE_KAFKA_MIN_INSYNC_REPLICAS"):
            await create_topics(kafka_server.url, missing, KafkaAccess(), TopicSettings(min_insync_replicas=2))
    created = await create_topics(kafka_server.url, missing, KafkaAccess(), TopicSettings())
    assert created == ["access.never"]


async def test_a_topic_that_was_not_created_says_what_to_run(kafka_server: KafkaServer) -> None:
    log = open_event_log(kafka_server.url, (TopicSpec("missing.v1", 1),))
    with pytest.raises(EventLogUnavailable, match="run flashsale migrate"):
        await log.append("missing.v1", 0, [NewRecord("k", b"v")])
    await log.close()


def test_addresses() -> None:
    assert brokers("kafka://a:1,b,10.0.0.1:9093") == ["a:1", "b:9092", "10.0.0.1:9093"]
    for url in ("kafka://", "kafka://user:password@host:1", "kafka://host:port", "kafka://host:1/topic"):
        with pytest.raises(KafkaAccessError, match="kafka://host:port"):
            brokers(url)


def test_settings_become_access(tmp_path: Path) -> None:
    settings = load_settings(
        {
            "FLASHSALE_KAFKA_TLS": "true",
            "FLASHSALE_KAFKA_CA_FILE": str(tmp_path / "ca.pem"),
            "FLASHSALE_KAFKA_USERNAME": USER,
            "FLASHSALE_KAFKA_PASSWORD": PASSWORD,
            "FLASHSALE_KAFKA_REPLICATION_FACTOR": "3",
            "FLASHSALE_KAFKA_MIN_INSYNC_REPLICAS": "2",
        }
    )
    access = KafkaAccess.of(settings)
    assert (access.username, access.password, access.tls) == (USER, PASSWORD, True)
    assert PASSWORD not in repr(access)
    assert TopicSettings.of(settings) == TopicSettings(replication_factor=3, min_insync_replicas=2)
    with pytest.raises(KafkaAccessError, match="FLASHSALE_KAFKA_CA_FILE"):
        access.arguments("kafka://host:1")
    with pytest.raises(KafkaAccessError, match="PLAIN needs"):
        KafkaAccess(username=USER, mechanism=KafkaMechanism.PLAIN).arguments("kafka://host:1")
