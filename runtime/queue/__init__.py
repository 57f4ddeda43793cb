"""Work queues: the port, its adapters, and the policy of retries. `open_queue` picks the adapter by URL scheme."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlsplit

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
    "UnusableQueueUrl",
    "open_queue",
]

FILES = ("cafile", "certfile", "keyfile")  # parameters of an amqps:// URL


class UnknownQueueScheme(OperatorError):
    """The queue's URL has a scheme without an adapter."""


class UnusableQueueUrl(OperatorError):
    """The queue's URL cannot be read, or it names a file that does not exist. Never shows a part of the password."""


def open_queue(url: str, specs: Iterable[QueueSpec], *, length_max: int = 10_000, connections_max: int = 64) -> Queue:
    """The broker at `url` with the queues of `specs` (`Topology.queues`); connects when it is first used.

    The adapter declares the queues. `length_max` bounds the messages of a queue whose spec has no bound of its own,
    retries included. A consumer keeps one of `connections_max` connections for itself. Raises UnknownQueueScheme,
    UnusableQueueUrl.
    """
    parts = _split(url)
    scheme = parts.scheme
    if scheme in ("redis", "rediss"):
        return RedisStreamsQueue(url, specs, length_max=length_max, connections_max=connections_max)
    if scheme in ("amqp", "amqps"):
        _check_amqp(parts)
        return RabbitQueue(url, specs, length_max=length_max)
    known = "use redis://, rediss://, amqp:// or amqps://"
    raise UnknownQueueScheme(f"FLASHSALE_QUEUE_URL: no adapter for {scheme or 'a URL without a scheme'}; {known}")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading it checks it
    except ValueError:  # its message may show a part of the password
        form = "write scheme://user:password@host:port/name"
        reserved = "percent-encode the characters / ? # [ ] @ : of the password"
        raise UnusableQueueUrl(f"FLASHSALE_QUEUE_URL: not an address; {form}, and {reserved}") from None
    return parts


def _check_amqp(parts: SplitResult) -> None:
    if not parts.hostname:
        raise UnusableQueueUrl("FLASHSALE_QUEUE_URL: no host; write amqp://user:password@host:port/virtual-host")
    for name, value in parse_qsl(parts.query):
        if name in FILES and not Path(value).is_file():
            raise UnusableQueueUrl(f"FLASHSALE_QUEUE_URL: {name}: there is no file {value}")
