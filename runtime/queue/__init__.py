"""Work queues: the port, its adapters, and the policy of retries. `open_queue` picks the adapter by URL scheme."""

from __future__ import annotations

from urllib.parse import urlsplit

from runtime.queue.port import (
    Consumer,
    DeadLetter,
    DeadLetters,
    Delivery,
    Failure,
    NotReplayable,
    Queue,
    QueueDepth,
    QueueFull,
    QueueUnavailable,
)
from runtime.queue.redis_streams import RedisStreamsQueue
from runtime.queue.retry_policy import RetryDecision, RetryPolicy

__all__ = [
    "Consumer",
    "DeadLetter",
    "DeadLetters",
    "Delivery",
    "Failure",
    "NotReplayable",
    "Queue",
    "QueueDepth",
    "QueueFull",
    "QueueUnavailable",
    "RetryDecision",
    "RetryPolicy",
    "UnknownQueueScheme",
    "open_queue",
]


class UnknownQueueScheme(ValueError):
    """The queue's URL has a scheme without an adapter."""


def open_queue(
    url: str, *, length_max: int = 10_000, dead_letters_max: int = 100_000, connections_max: int = 64
) -> Queue:
    """The queue at `url`; connects when it is first used.

    `length_max` bounds the messages of one queue, retries included, `dead_letters_max` its dead letters. A consumer
    keeps one of `connections_max` connections for itself. Raises UnknownQueueScheme.
    """
    scheme = urlsplit(url).scheme
    if scheme in ("redis", "rediss"):
        return RedisStreamsQueue(
            url, length_max=length_max, dead_letters_max=dead_letters_max, connections_max=connections_max
        )
    raise UnknownQueueScheme(
        f"FLASHSALE_QUEUE_URL: no adapter for {scheme or 'a URL without a scheme'}; there is redis://"
    )
