"""Decides whether the edge may admit orders: Redis must be reachable, durable as promised, and have free memory.

Asks Redis four times a second for its time, memory, identity and configuration: an operator may switch `appendfsync`
off while orders arrive, and every order until the next look would be promised and not durable. When the server changed
(restarted, replaced), checks the cluster's fingerprint again. Only decides; the application refuses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from domain.topology import Topology
from edge.clock import RedisClock
from runtime.process import fingerprint
from runtime.process.settings import Durability
from runtime.process.supervision import Beat, no_beat
from runtime.process.tasks import until_tick
from runtime.redis.cluster import primaries_of

_log = structlog.get_logger("edge.admission")

PERIOD_S = 0.25
FAULTY_PERIOD_S = 0.1  # short, so that the edge is ready soon after the server is back
ANSWER_S_MAX = 2.0
RECHECK_S = 30.0  # of the fingerprint
_CONFIGURATION = ("appendonly", "appendfsync", "maxmemory-policy", "min-replicas-to-write")


@dataclass(slots=True)
class Observed:
    """The last observation. `faults` maps the name of a failed check to a sentence; empty when all checks passed."""

    faults: dict[str, str] = field(default_factory=lambda: {"redis": "not reached yet"})
    memory_percent: float = 0.0
    memory_high: bool = False
    run_id: str = ""
    restarts_seen: int = 0


@dataclass(frozen=True, slots=True)
class _Server:
    """What a server told about itself at one moment. `configuration` may be the error that it answered."""

    info: Mapping[str, Any]
    configuration: object
    time_s: int
    time_us: int
    asked_at: float
    answered_at: float

    @property
    def run_id(self) -> str:
        return str(self.info["run_id"])

    @property
    def memory_percent(self) -> float:
        # A Redis without a limit may use all memory of the machine.
        limit = self.info["maxmemory"] or self.info.get("total_system_memory", 0)
        return 100 * self.info["used_memory"] / limit if limit else 0.0

    def measure(self, clock: RedisClock) -> None:
        clock.measured(redis_s=self.time_s, redis_us=self.time_us, asked_at=self.asked_at, answered_at=self.answered_at)


async def _ask_server(redis: Redis) -> _Server:
    asked_at = time.time()
    async with redis.pipeline(transaction=False) as pipeline:
        pipeline.time()
        pipeline.info("memory", "server")
        pipeline.config_get(*_CONFIGURATION)
        answers = await pipeline.execute(raise_on_error=False)
    *facts, configuration = answers
    for fact in facts:
        if isinstance(fact, Exception):
            raise fact
    (time_s, time_us), info = facts
    return _Server(info, configuration, time_s, time_us, asked_at, time.time())


class Admission:
    """Owns `observed`. Calls `on_memory` when memory use crosses the limit in either direction, and `on_clock` at each
    look with the milliseconds by which Redis' clock is ahead of the local one."""

    def __init__(
        self,
        redis: Redis,
        *,
        cluster: Topology,
        clock: RedisClock,
        durability: Durability,
        memory_percent_max: int,
        on_memory: Callable[[bool], None],
        on_clock: Callable[[int], None],
    ) -> None:
        self._redis = redis
        self._cluster = cluster
        self._clock = clock
        self._durability = durability
        self._memory_percent_max = memory_percent_max
        self._on_memory = on_memory
        self._on_clock = on_clock
        self._checked_at = 0.0
        self.observed = Observed()
        self._closed = True  # until the first check of the promises

    def refuses_orders(self) -> bool:
        """Whether a promise cannot be kept. An unreachable Redis is no reason: orders in flight are resubmitted."""
        return self._closed

    async def run(self, beat: Beat = no_beat) -> None:
        """Look for ever, with a beat at each look. Cancel to stop."""
        while True:
            await self.look()
            beat()
            await asyncio.sleep(FAULTY_PERIOD_S if self.observed.faults else until_tick(PERIOD_S))

    async def look(self) -> None:
        """Look once. Never raises for an unreachable or misconfigured Redis."""
        faults = dict(self.observed.faults)
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                servers = await self._ask()
                faults.pop("redis", None)
                faults |= {"durability": "", "eviction": ""}
                for server in servers:
                    faults |= self._broken_promises(server.configuration)
                run_id = ",".join(sorted(server.run_id for server in servers))
                if run_id != self.observed.run_id or time.monotonic() - self._checked_at > RECHECK_S:
                    faults["cluster_settings"] = await self._other_cluster()
                    self._checked_at = time.monotonic()
                    if self.observed.run_id not in ("", run_id):
                        self.observed.restarts_seen += 1
                    self.observed.run_id = run_id
        except (RedisError, OSError, TimeoutError) as error:
            faults["redis"] = f"does not answer ({type(error).__name__})"
        self._take({name: detail for name, detail in faults.items() if detail})

    def _take(self, faults: dict[str, str]) -> None:
        for name in faults.keys() - self.observed.faults.keys():
            _log.error("fault", check=name, detail=faults[name])
        for name in self.observed.faults.keys() - faults.keys():
            _log.info("fault_over", check=name)
        self.observed.faults = faults
        self._closed = not self.observed.run_id or bool(faults.keys() - {"redis"})

    async def _ask(self) -> list[_Server]:
        """What each server tells. Nodes of a cluster that do not answer are left out, unless none answers.

        The orders of such a node are refused one by one; the other nodes' orders go on.
        """
        nodes = await primaries_of(self._redis)
        told = await asyncio.gather(*(_ask_server(node) for node in nodes), return_exceptions=True)
        servers = [one for one in told if isinstance(one, _Server)]
        errors = [one for one in told if isinstance(one, BaseException)]
        for error in errors:
            if not servers or not isinstance(error, (RedisError, OSError)):
                raise error
        for error in errors:
            _log.warning("node_does_not_answer", error=str(error) or type(error).__name__)
        servers[0].measure(self._clock)
        self._on_clock(self._clock.offset_ms)
        self._look_at_memory(max(server.memory_percent for server in servers))
        return servers

    def _look_at_memory(self, percent: float) -> None:
        self.observed.memory_percent = percent
        high = percent >= self._memory_percent_max
        if high != self.observed.memory_high:
            self.observed.memory_high = high
            _log.warning("memory_high" if high else "memory_normal", percent=round(percent, 1))
            self._on_memory(high)

    async def _other_cluster(self) -> str:
        """A sentence when Redis belongs to a cluster with other settings, else empty."""
        try:
            await fingerprint.check(self._redis, self._cluster)
        except fingerprint.FingerprintMismatch as error:
            return str(error)
        return ""

    def _broken_promises(self, configuration: object) -> dict[str, str]:
        """Compare the configuration of Redis with the promise of a 202. Returns name -> sentence for each fault."""
        if isinstance(configuration, ResponseError):
            return {"durability": f"cannot be checked: {configuration}"}
        if not isinstance(configuration, dict):
            raise RedisError(f"not a configuration: {type(configuration).__name__}")
        faults: dict[str, str] = {}
        seen = {_text(name): _text(value) for name, value in configuration.items()}
        synced = seen.get("appendonly") == "yes" and seen.get("appendfsync") == "always"
        if self._durability is not Durability.MEMORY and not synced:
            faults["durability"] = (
                f"{self._durability.value} needs appendonly yes and appendfsync always, "
                f"Redis has appendonly {seen.get('appendonly')} and appendfsync {seen.get('appendfsync')}"
            )
        if self._durability is Durability.REPLICATED and not int(seen.get("min-replicas-to-write") or 0):
            # Without it a Redis that lost its replica takes orders that end as outcome_unknown, one by one.
            faults["durability"] = "replicated needs min-replicas-to-write 1 or more, Redis has 0"
        if seen.get("maxmemory-policy") != "noeviction":
            faults["eviction"] = f"Redis may evict orders: maxmemory-policy is {seen.get('maxmemory-policy')}"
        return faults


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
