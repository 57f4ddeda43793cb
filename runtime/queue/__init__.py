"""Work queues: the port, its adapters, and the policy of retries. `open_queue` picks the adapter by URL scheme."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from domain.topology import QueueSpec
from runtime.process.errors import OperatorError
from runtime.queue.port import (
    Consumer,
    Delivery,
    Failure,
    FailureKind,
    Queue,
    QueueDepth,
    QueueFull,
    QueueUnavailable,
    UnknownQueue,
)
from runtime.queue.rabbitmq import RabbitQueue
from runtime.queue.redis_streams import RedisStreamsQueue
from runtime.queue.retry_policy import RetryDecision, RetryPolicy

__all__ = [
    "Consumer",
    "Delivery",
    "Failure",
    "FailureKind",
    "Queue",
    "QueueDepth",
    "QueueFull",
    "QueueUnavailable",
    "RetryDecision",
    "RetryPolicy",
    "UnknownQueue",
    "UnknownQueueScheme",
    "open_queue",
]


class UnknownQueueScheme(OperatorError):
    """The queue's URL has a scheme without an adapter."""


def open_queue(url: str, specs: Iterable[QueueSpec], *, length_max: int = 10_000, connections_max: int = 64) -> Queue:
    """The broker at `url` with the queues of `specs` (`Topology.queues`); connects when it is first used.

    The adapter declares the queues. `length_max` bounds the messages of a queue whose spec has no bound of its own,
    retries included. A consumer keeps one of `connections_max` connections for itself. Raises UnknownQueueScheme.
    """
    scheme = urlsplit(url).scheme
    if scheme in ("redis", "rediss"):
        return RedisStreamsQueue(url, specs, length_max=length_max, connections_max=connections_max)
    if scheme in ("amqp", "amqps"):
        return RabbitQueue(url, specs, length_max=length_max)
    known = "use redis://, rediss://, amqp:// or amqps://"
    raise UnknownQueueScheme(f"FLASHSALE_QUEUE_URL: no adapter for {scheme or 'a URL without a scheme'}; {known}")
