"""Creates the topics on Kafka, and checks those that exist. `flashsale migrate` and the embedded stack call it.

A topic's partitions never change, because they keep the order of a key: another number is an error. Retention and
`min.insync.replicas` follow the settings. Topics that this project does not declare stay untouched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from domain.topology import TopicSpec
from runtime.event_log.kafka_access import KafkaAccess
from runtime.process.errors import OperatorError
from runtime.process.settings import Settings

CREATE_S_MAX = 30.0


class TopicsDiffer(OperatorError):
    """Topics cannot be created or are not as declared; the message names each and says what to do."""


@dataclass(frozen=True, slots=True)
class TopicSettings:
    """What all topics have in common: replicas of a partition, those that must be in sync, the size of a partition."""

    replication_factor: int = 1
    min_insync_replicas: int = 1
    partition_mb_max: int = 1024

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The settings of all topics."""
        return cls(
            settings.kafka_replication_factor, settings.kafka_min_insync_replicas, settings.kafka_partition_mb_max
        )

    def configuration(self, spec: TopicSpec) -> dict[str, str]:
        """The topic's configuration, by Kafka's names."""
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(spec.retention_s * 1000),
            "retention.bytes": str(self.partition_mb_max * 1024 * 1024),
            "min.insync.replicas": str(self.min_insync_replicas),
            "message.timestamp.type": "LogAppendTime",
        }


async def create_topics(
    url: str, specs: Iterable[TopicSpec], access: KafkaAccess, settings: TopicSettings
) -> list[str]:
    """Create the missing topics, set the configuration of the others; returns the names of the new ones.

    Raises TopicsDiffer. Running it again changes nothing.
    """
    admin = AIOKafkaAdminClient(**access.arguments(url), client_id="flashsale-migrate", request_timeout_ms=10_000)
    try:
        async with asyncio.timeout(CREATE_S_MAX):
            await admin.start()
            return await _create(admin, list(specs), settings)
    except (errors.KafkaError, OSError, TimeoutError) as error:
        raise TopicsDiffer(f"the topics were not created: {str(error) or type(error).__name__}") from error
    finally:
        await admin.close()


async def _create(admin: AIOKafkaAdminClient, specs: list[TopicSpec], settings: TopicSettings) -> list[str]:
    existing = set(await admin.list_topics())
    missing = [spec for spec in specs if spec.name not in existing]
    found = [spec for spec in specs if spec.name in existing]
    _check(await admin.describe_topics([spec.name for spec in found]) if found else [], found, settings)
    created = []
    if missing and settings.replication_factor < settings.min_insync_replicas:
        raise TopicsDiffer(
            f"topics with {settings.replication_factor} replicas were not created: "
            f"FLASHSALE_KAFKA_MIN_INSYNC_REPLICAS ({settings.min_insync_replicas}) is more, so no event could be "
            "appended. Set FLASHSALE_KAFKA_REPLICATION_FACTOR to at least this number"
        )
    if missing:
        new = [
            NewTopic(
                spec.name, spec.partitions, settings.replication_factor, topic_configs=settings.configuration(spec)
            )
            for spec in missing
        ]
        answer = await admin.create_topics(new)
        for name, code, *rest in answer.topic_errors:
            if code == 0:
                created.append(name)
            elif code != errors.TopicAlreadyExistsError.errno:  # another `migrate` at the same time is no error
                raise TopicsDiffer(f"topic {name} was not created: {_message(code, rest)}")
    if found:
        answers = await admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, spec.name, settings.configuration(spec)) for spec in found]
        )
        for code, message, _, name in (resource for answer in answers for resource in answer.resources):
            if code:
                raise TopicsDiffer(f"topic {name} was not configured: {_message(code, [message])}")
    return created


def _check(described: Iterable[Mapping[str, Any]], specs: Iterable[TopicSpec], settings: TopicSettings) -> None:
    declared = {spec.name: spec for spec in specs}
    problems = []
    for topic in described:
        spec = declared[topic["topic"]]
        partitions = topic["partitions"]
        if len(partitions) != spec.partitions:
            problems.append(
                f"topic {spec.name} has {len(partitions)} partitions, and {spec.partitions} are declared: partitions keep "
                "the order of events, so their number must not change. Delete the topic if its events may be lost, "
                "or use another cluster"
            )
        replicas = min((len(partition["replicas"]) for partition in partitions), default=0)
        if replicas < settings.min_insync_replicas:
            problems.append(
                f"topic {spec.name} has {replicas} replicas, fewer than FLASHSALE_KAFKA_MIN_INSYNC_REPLICAS "
                f"({settings.min_insync_replicas}): no event could be appended. Add replicas with Kafka's tools"
            )
    if problems:
        raise TopicsDiffer("; ".join(problems))


def _message(code: int, rest: list[Any]) -> str:
    return next((str(part) for part in rest if part), errors.for_code(code).__name__)
