"""The loop of a pub/sub subscription: reconnects with jitter, detects a silent peer, reports each new connection.

Messages published while the connection is down are lost. Therefore `opened` is called after every (re)connection: the
caller reads there the changes that it may have missed. Messages that arrive meanwhile are delivered afterwards.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

log = structlog.get_logger(__name__)

PING_S = 5.0
RECONNECT_S_MIN = 0.05
RECONNECT_S_MAX = 1.0


class ChannelLost(Exception):
    """The subscription does not work any more. A callback may raise it to have the channel opened anew."""


class Channel:
    """One subscription of one process; `follow` runs it."""

    def __init__(
        self,
        redis: Redis,
        name: str,
        *,
        opened: Callable[[], Awaitable[None]],
        received: Callable[[bytes], Awaitable[None]],
        lost: Callable[[], None] | None = None,
        ping_s: float = PING_S,
        pings_unanswered_max: int = 1,
        reconnect_s_max: float = RECONNECT_S_MAX,
    ) -> None:
        """Uses the client, does not own it.

        `received` gets each payload, `lost` is called once when an open channel is lost. After `ping_s` without a
        message the peer is pinged; a peer that leaves `pings_unanswered_max` pings unanswered is given up.
        """
        self._redis = redis
        self._name = name
        self._opened = opened
        self._received = received
        self._lost = lost
        self._ping_s = ping_s
        self._pings_unanswered_max = pings_unanswered_max
        self._reconnect_s_max = reconnect_s_max
        self.is_open = False  # subscribed, and `opened` has returned

    async def follow(self) -> NoReturn:
        """Follow the channel until cancelled. Errors of Redis in callbacks, and ChannelLost, reopen the channel."""
        while True:
            try:
                await self._follow_once()
            except (RedisError, OSError, TimeoutError, ChannelLost) as error:
                log.warning("channel lost", channel=self._name, error=str(error) or type(error).__name__)
            finally:
                self._close()
            pause_s = random.uniform(RECONNECT_S_MIN, self._reconnect_s_max)  # noqa: S311 - jitter, no secret
            await asyncio.sleep(pause_s)

    async def _follow_once(self) -> None:
        async with self._redis.pubsub() as subscription:
            await subscription.subscribe(self._name)
            silent_waits = 0  # each but the first followed a ping
            while silent_waits <= self._pings_unanswered_max:
                # A dead peer answers no PING; a plain read would wait for ever.
                message = await subscription.get_message(timeout=self._ping_s)
                if message is None:
                    silent_waits += 1
                    await subscription.ping()
                    continue
                silent_waits = 0
                if message["type"] == "subscribe":
                    # Again when redis-py has reconnected by itself: messages of the meantime are lost.
                    self._close()
                    await self._opened()
                    self.is_open = True
                elif message["type"] == "message":
                    await self._received(bytes(message["data"]))
            raise ChannelLost("the peer answers no ping")

    def _close(self) -> None:
        if self.is_open:
            self.is_open = False
            if self._lost is not None:
                self._lost()
