"""Requests to a Kafka cluster: metadata, offsets of partitions, positions of groups, and fetches.

One `KafkaClient` has one connection to each broker, opened when it is first used. After an error of the network it
begins anew with the addresses of the URL, after a growing pause. Everything raises EventLogUnavailable; every wait has
an end.

aiokafka's own consumer is not used: it fetches ahead in the background, hides that no broker answers, and its groups
assign partitions, which this project does by leases.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from aiokafka import errors
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.structs import TopicPartition

from runtime.event_log.port import EventLogUnavailable
from runtime.process.backoff import Backoff

REQUEST_S_MAX = 5.0  # for a request and its repetitions
RETRY_S = 0.05  # while a leader or a coordinator is being elected
TOPIC_S_MAX = 2.0  # until a broker knows a new topic
FETCH_BYTES_MAX = 4 * 1024 * 1024  # one fetch, all partitions together
PARTITION_BYTES_MAX = 1024 * 1024  # one fetch, one partition; the largest batch of a producer fits
_OLDEST, _END = -2, -1  # in place of a time, in requests for offsets
_NONE = -1  # a group has no position
_READ_UNCOMMITTED = 0  # there are no transactions

# The errors reach the callers; the client's own lines would repeat them at each attempt.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

T = TypeVar("T")


class Electing(EventLogUnavailable):
    """A partition has no leader yet, or another one than was known."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A partition's part of a fetch: raw batches, or that the offset is not in the log."""

    partition: int
    asked: int
    batches: bytes
    out_of_range: bool = False


class KafkaClient:
    """See the module. `arguments` are those of `KafkaAccess.arguments`."""

    def __init__(self, arguments: Mapping[str, Any], *, request_s_max: float = REQUEST_S_MAX) -> None:
        """Connects when it is first used."""
        self._arguments = dict(arguments)
        self._request_s_max = request_s_max
        self._client: AIOKafkaClient | None = None
        self._opening = asyncio.Lock()
        self._backoff = Backoff(first_s=0.05, longest_s=1.0)
        self._opens_at = 0.0
        self._coordinators: dict[str, int] = {}

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        self._coordinators.clear()
        if client is not None:
            await client.close()

    async def bounds(self, topic: str, partitions: Iterable[int]) -> dict[int, tuple[int, int]]:
        """The oldest offset and the offset after the newest record, by partition."""
        asked = list(partitions)
        if not asked:
            return {}
        oldest = await self.request(topic, None, lambda client: self._offsets(client, topic, asked, _OLDEST))
        ends = await self.request(topic, None, lambda client: self._offsets(client, topic, asked, _END))
        return {partition: (oldest[partition], ends[partition]) for partition in asked}

    async def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """The offset after the newest record, by partition."""
        asked = list(partitions)
        if not asked:
            return {}
        return await self.request(topic, None, lambda client: self._offsets(client, topic, asked, _END))

    async def positions(self, group: str, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """The committed positions of a group, by partition; without the partitions that have none."""
        asked = list(partitions)

        async def read(client: AIOKafkaClient) -> dict[int, int]:
            answer = await self._ask_coordinator(client, group, OffsetFetchRequest(group, [(topic, asked)]))
            found = {}
            for _, listed in answer.topics:
                for partition, offset, _, code in listed:
                    _raise_for(code)
                    if offset != _NONE:
                        found[partition] = offset
            return found

        return await self.request(topic, None, read)

    async def commit(self, group: str, topic: str, positions: Mapping[int, int]) -> None:
        """Store positions of a group that has no members."""
        listed = [(partition, offset, "") for partition, offset in positions.items()]

        async def write(client: AIOKafkaClient) -> None:
            request = OffsetCommitRequest(group, -1, "", OffsetCommitRequest.DEFAULT_RETENTION_TIME, [(topic, listed)])
            answer = await self._ask_coordinator(client, group, request)
            for _, results in answer.topics:
                for _, code in results:
                    _raise_for(code)

        await self.request(topic, None, write)

    async def leaders(self, topic: str, partitions: Iterable[int]) -> dict[int, list[int]]:
        """Partitions by the broker that leads them."""
        asked = list(partitions)
        return await self.request(topic, None, lambda client: self._leaders(client, topic, asked))

    async def fetch(self, node: int, topic: str, offsets: Mapping[int, int], *, wait_s: float) -> list[Fetched]:
        """One fetch from one broker; waits there until a record arrives, `wait_s` at most."""
        listed = [(partition, offset, PARTITION_BYTES_MAX) for partition, offset in offsets.items()]
        request = FetchRequest(int(wait_s * 1000), 1, FETCH_BYTES_MAX, _READ_UNCOMMITTED, [(topic, listed)])

        async def read(client: AIOKafkaClient) -> list[Fetched]:
            answer = await client.send(node, request)
            found = []
            for _, parts in answer.topics:
                for partition, code, _, *rest in parts:
                    if code == errors.OffsetOutOfRangeError.errno:
                        found.append(Fetched(partition, offsets[partition], b"", out_of_range=True))
                        continue
                    _raise_for(code)
                    if rest[-1]:
                        found.append(Fetched(partition, offsets[partition], rest[-1]))
            return found

        return await self.request(topic, None, read, more_s=wait_s, repeat=False)

    async def request(
        self,
        topic: str,
        partition: int | None,
        operation: Callable[[AIOKafkaClient], Awaitable[T]],
        *,
        more_s: float = 0.0,
        repeat: bool = True,
    ) -> T:
        """Run an operation, again while a leader or coordinator is being elected; connect before it if needed."""
        deadline = time.monotonic() + self._request_s_max + more_s
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                while True:
                    client = await self._opened()
                    try:
                        answer = await operation(client)
                    except errors.KafkaError as error:
                        self._coordinators.clear()
                        if not error.retriable or _is_of_network(error) or not repeat:
                            raise
                        await client.force_metadata_update()
                        await asyncio.sleep(RETRY_S)
                    else:
                        self._backoff.reset()
                        return answer
        except errors.KafkaError as error:
            if _is_of_network(error):
                await self._drop()
            elif self._client is not None:
                self._client.force_metadata_update()
                if error.retriable:
                    raise Electing(topic, partition, words(error)) from error
            raise EventLogUnavailable(topic, partition, words(error)) from error
        except (OSError, TimeoutError) as error:
            await self._drop()
            raise EventLogUnavailable(topic, partition, words(error)) from error

    async def _opened(self) -> AIOKafkaClient:
        async with self._opening:
            if self._client is None:
                await asyncio.sleep(max(0.0, self._opens_at - time.monotonic()))
                client = AIOKafkaClient(
                    **self._arguments,
                    client_id="flashsale",
                    request_timeout_ms=int(self._request_s_max * 1000),
                    retry_backoff_ms=int(RETRY_S * 1000),
                )
                try:
                    await client.bootstrap()
                except BaseException:
                    self._opens_at = time.monotonic() + self._backoff.next_s()
                    await client.close()
                    raise
                self._client = client
            return self._client

    async def _drop(self) -> None:
        """The next request connects anew: brokers may have other addresses by then."""
        self._opens_at = max(self._opens_at, time.monotonic() + self._backoff.next_s())
        await self.close()

    async def _offsets(
        self, client: AIOKafkaClient, topic: str, partitions: Sequence[int], time_ms: int
    ) -> dict[int, int]:
        found: dict[int, int] = {}
        for node, listed in (await self._leaders(client, topic, partitions)).items():
            asked = [(partition, time_ms) for partition in listed]
            answer = await client.send(node, OffsetRequest(-1, _READ_UNCOMMITTED, [(topic, asked)]))
            for _, parts in answer.topics:
                for partition, code, _, offset in parts:
                    _raise_for(code)
                    found[partition] = offset
        return found

    async def _leaders(self, client: AIOKafkaClient, topic: str, partitions: Sequence[int]) -> dict[int, list[int]]:
        await partitions_of(client, topic, partitions)
        by_node: defaultdict[int, list[int]] = defaultdict(list)
        for partition in partitions:
            node = client.cluster.leader_for_partition(TopicPartition(topic, partition))
            if node is None or node == -1:
                raise errors.LeaderNotAvailableError(f"{topic}/{partition} has no leader")
            by_node[node].append(partition)
        return by_node

    async def _ask_coordinator(self, client: AIOKafkaClient, group: str, request: Any) -> Any:
        if group not in self._coordinators:
            node = client.get_random_node()
            answer = await client.send(node, FindCoordinatorRequest(group, 0))
            _raise_for(answer.error_code)
            self._coordinators[group] = answer.coordinator_id
        return await client.send(self._coordinators[group], request)


async def partitions_of(client: AIOKafkaClient, topic: str, needed: Iterable[int]) -> None:
    """Return when the topic and the needed partitions are known. Raises UnknownTopicOrPartitionError."""
    ends_at = time.monotonic() + TOPIC_S_MAX
    while (found := client.cluster.partitions_for_topic(topic)) is None and time.monotonic() < ends_at:
        client.add_topic(topic)
        await client.force_metadata_update()
        if client.cluster.partitions_for_topic(topic) is None:
            await asyncio.sleep(RETRY_S)
    if found is None or not found.issuperset(needed):
        raise errors.UnknownTopicOrPartitionError(
            f"the topic has {len(found or ())} partitions, {max(needed, default=0) + 1} are needed: run flashsale migrate"
        )


def words(error: BaseException) -> str:
    """An error for a log line."""
    return str(error) or type(error).__name__


def _is_of_network(error: errors.KafkaError) -> bool:
    return isinstance(
        error,
        (errors.KafkaConnectionError, errors.NodeNotReadyError, errors.RequestTimedOutError, errors.StaleMetadata),
    )


def _raise_for(code: int) -> None:
    if code:
        raise errors.for_code(code)()
