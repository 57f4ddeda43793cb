"""Refuses to run with cluster settings that differ from other processes': compares a fingerprint in Redis."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from domain.topology import FINGERPRINT_KEY, Topology
from runtime.buckets import following
from runtime.process.backoff import Backoff
from runtime.process.errors import OperatorError
from runtime.process.service import Service

log = structlog.get_logger()


class FingerprintMismatch(OperatorError):
    """Another process has other cluster settings (lanes, shards, hash); both running would corrupt data."""

    def __init__(self, *, ours: str, theirs: str) -> None:
        """Both fingerprints, as `Topology.fingerprint` makes them."""
        super().__init__(
            f"cluster settings differ: fingerprint here {ours}, in Redis {theirs}; "
            "FLASHSALE_LANES and FLASHSALE_FIRST_SHARDS (without it FLASHSALE_SHARDS) must be the same in every process"
        )
        self.ours = ours
        self.theirs = theirs


async def check(redis: Redis, topology: Topology) -> None:
    """Compare with the fingerprint in Redis; set it when absent (one atomic command). Then read the map of buckets.

    Raises FingerprintMismatch, and RedisError when Redis does not answer.
    """
    stored = await redis.set(FINGERPRINT_KEY, topology.fingerprint, nx=True, get=True)
    if stored is not None:
        assert isinstance(stored, bytes)
        theirs = stored.decode("ascii", "replace")
        if theirs != topology.fingerprint:
            raise FingerprintMismatch(ours=topology.fingerprint, theirs=theirs)
    await following.refresh(redis, topology)


async def join(redis: Redis, service: Service) -> bool:
    """Check as soon as Redis answers, then follow the map of buckets until the service stops. False when it must stop.

    Raises FingerprintMismatch.
    """
    topology = service.settings.topology
    if not await check_when_reachable(redis, topology, service.pause):
        return False
    follower = following.Follower(redis, topology, name=service.name)
    service.background.start("buckets", partial(follower.follow_until, service.stopping))
    return True


async def check_when_reachable(redis: Redis, topology: Topology, pause: Callable[[float], Awaitable[bool]]) -> bool:
    """Repeat `check` until Redis answers. False when `pause` reports that the process must stop.

    `pause(seconds)` is `Service.pause`. Raises FingerprintMismatch.
    """
    backoff = Backoff(first_s=0.1, longest_s=1.0)
    while True:
        try:
            await check(redis, topology)
        except (RedisError, OSError) as error:
            log.warning("redis not reachable", error=str(error) or type(error).__name__)
            if await pause(backoff.next_s()):
                return False
            continue
        return True
