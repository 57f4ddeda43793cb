"""The queues of RabbitMQ: their names, their arguments, and their declaration. The one place that declares.

    publisher --> [orders.shard.0] --> consumers          quorum queue, no bound of the broker's (see rabbitmq_room)
                        ^    |
       at-least-once    |    | retry: publish, then acknowledge
       dead-lettering   |    v
              [orders.shard.0.delay.200]  .400  ...       quorum queues, one for each delay: TTL ends at the head only
    barrier --> (orders.shard.0.control)  fanout --> one exclusive queue for each consumer and each waiting barrier

Arguments are the same for RabbitMQ 3.10 to 4.x, so that an upgrade finds the queues equal. Those that differ by version
when they are absent are given on purpose: the delivery limit (none in 3.x; 20 in 4.x, then the message is dropped), and
the consumer's time-out (an argument since 3.12; older ones take the server's setting).
"""

from __future__ import annotations

from collections.abc import Iterable

import aiormq
import structlog
from aiormq.abc import AbstractConnection
from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed

from domain.topology import QueueSpec

# Longer than any pause of a consumer with messages in hand is tolerated: then others take them over.
CONSUMER_TIMEOUT_MS = 1_800_000
# No limit in practice: a writer that crashes 20 times must not lose its orders. -1 would say so, but only to 4.x.
DELIVERY_LIMIT = 1_000_000_000
# Messages of a delay queue. At least-once dead-lettering needs a queue that refuses; a setting would make an existing
# queue unequal, so it is a constant.
RETRYING_LENGTH_MAX = 20_000
PRIVATE_PREFIX = "flashsale.private."  # of exclusive queues: the part that every user may configure

log = structlog.get_logger()


def delay_queue(queue: str, delay_ms: int) -> str:
    """The queue in which retries with this delay wait."""
    return f"{queue}.delay.{delay_ms}"


def control_exchange(queue: str) -> str:
    """The fanout exchange that reaches every consumer of a queue, and every caller of its barrier."""
    return f"{queue}.control"


def delay_steps(spec: QueueSpec) -> tuple[int, ...]:
    """The delays that need a queue, ascending. A retry without delay goes straight to the queue's end."""
    return tuple(sorted({delay_ms for delay_ms in spec.retry_delays_ms if delay_ms > 0}))


def place_of_retry(spec: QueueSpec, delay_ms: int) -> str:
    """The queue in which a retry waits: the next longer delay of the spec, or its longest."""
    if delay_ms <= 0:
        return spec.name
    steps = delay_steps(spec)
    if not steps:
        return spec.name
    return delay_queue(spec.name, next((step for step in steps if step >= delay_ms), steps[-1]))


def queue_arguments() -> dict[str, object]:
    """Arguments of a work queue."""
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-consumer-timeout": CONSUMER_TIMEOUT_MS,
    }


def delay_arguments(queue: str, delay_ms: int, *, length_max: int) -> dict[str, object]:
    """Arguments of a delay queue: back to the work queue after the delay, removed there only when it is here."""
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-message-ttl": delay_ms,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-max-length": length_max,
    }


async def declare(connection: AbstractConnection, specs: Iterable[QueueSpec], *, retrying_length_max: int) -> None:
    """Declare everything; existing queues and exchanges stay.

    A queue with other arguments is used as it is, with a warning. Without the right to declare, the queue must exist:
    ChannelNotFoundEntity.
    """
    for spec in specs:
        await _declare_exchange(connection, control_exchange(spec.name))
        await _declare_queue(connection, spec.name, queue_arguments())
        for delay_ms in delay_steps(spec):
            arguments = delay_arguments(spec.name, delay_ms, length_max=retrying_length_max)
            await _declare_queue(connection, delay_queue(spec.name, delay_ms), arguments)


async def _declare_queue(connection: AbstractConnection, name: str, arguments: dict[str, object]) -> None:
    channel = await connection.channel(publisher_confirms=False)  # a refusal closes it
    try:
        await channel.queue_declare(name, durable=True, arguments=arguments)  # type: ignore[arg-type]
    except ChannelPreconditionFailed as error:
        log.warning("queue has other arguments; drain it, delete it, start a process again", queue=name, why=str(error))
    except ChannelAccessRefused:
        channel = await connection.channel(publisher_confirms=False)
        await channel.queue_declare(name, passive=True)
    await close_channel(channel)


async def _declare_exchange(connection: AbstractConnection, name: str) -> None:
    channel = await connection.channel(publisher_confirms=False)
    try:
        await channel.exchange_declare(exchange=name, exchange_type="fanout", durable=True)
    except ChannelAccessRefused:
        channel = await connection.channel(publisher_confirms=False)
        await channel.exchange_declare(exchange=name, passive=True)
    await close_channel(channel)


async def close_channel(channel: aiormq.abc.AbstractChannel) -> None:
    """Close a channel that may be closed already."""
    if not channel.is_closed:
        await channel.close()
