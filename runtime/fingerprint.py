"""The guard against processes with different cluster settings: their fingerprint in Redis must be the same everywhere."""

from __future__ import annotations

from redis.asyncio import Redis

from domain.topology import FINGERPRINT_KEY, Topology


class FingerprintMismatch(Exception):
    """Another process set other cluster settings (lanes, shards, hash); running on would corrupt data."""

    def __init__(self, *, ours: str, theirs: str) -> None:
        """Both fingerprints, as `Topology.fingerprint` makes them."""
        super().__init__(
            f"cluster settings differ: fingerprint here {ours}, in Redis {theirs}; "
            "FLASHSALE_LANES and FLASHSALE_SHARDS must be the same in every process"
        )
        self.ours = ours
        self.theirs = theirs


async def check(redis: Redis, topology: Topology) -> None:
    """Compare with the fingerprint in Redis; set it when absent (one atomic command).

    Raises FingerprintMismatch, and RedisError when Redis cannot be asked.
    """
    stored = await redis.set(FINGERPRINT_KEY, topology.fingerprint, nx=True, get=True)
    if stored is None:
        return
    assert isinstance(stored, bytes)
    theirs = stored.decode("ascii", "replace")
    if theirs != topology.fingerprint:
        raise FingerprintMismatch(ours=topology.fingerprint, theirs=theirs)
