"""The order path's connections to a Redis Cluster: a link to each node that owns a lane, with a batcher of its own.

Follows the owners of the lanes: at a MOVED at once, otherwise by a look at the cluster each second, and after a node
was lost or answered CLUSTERDOWN. Orders that wait for a lane follow it. Knows nothing of orders.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog
from redis.exceptions import RedisError

from domain import topology
from edge.lane_marks import LaneMarks
from edge.redis_link import RedisAddress, RedisLink
from hotpath.batcher import Batcher
from hotpath.lane_router import LaneRouter
from runtime.process import tasks
from runtime.process.supervision import Beat, no_beat
from runtime.process.tasks import wait_within
from runtime.redis.addresses import ClusterAddress, Node
from runtime.redis.cluster import ClusterRedis

_log = structlog.get_logger("edge.cluster_link")

ROUND_S: Final = 0.25
LOOK_S: Final = 1.0
LOOK_AGAIN_S: Final = 0.1  # while a lane has no connected owner, or a node said that its slot moves
NODES_MAX: Final = 64  # links at a time; lanes of further nodes wait, and their orders end at their deadline


class MakeBatcher(Protocol):
    """Makes the batcher of one node."""

    def __call__(self, wake: Callable[[], None], on_redirect: Callable[[int, str], None] | None = None) -> Batcher:
        """`wake` requests a write; `on_redirect` gets a lane and the error of the node."""
        ...


class ClusterLink:
    """A link for each node that owns a lane. One event loop owns it."""

    def __init__(
        self,
        address: ClusterAddress,
        redis: ClusterRedis,
        make_batcher: MakeBatcher,
        *,
        silence_s_max: float,
        on_sweep: Callable[[int], object],
        marks: LaneMarks,
    ) -> None:
        """Uses `redis` for the owners of lanes only. `on_sweep` gets the time (CLOCK_MONOTONIC, ns)."""
        self._address = address
        self._redis = redis
        self._make_batcher = make_batcher
        self._silence_s_max = silence_s_max
        self._on_sweep = on_sweep
        self._marks = marks
        self._news = asyncio.Event()
        self._links: dict[Node, RedisLink] = {}
        self._work: dict[Node, asyncio.Task[None]] = {}
        self._closed_connections = 0
        self._owners: list[Node] = [address.seeds[0]] * len(marks.lanes)  # the first look tells the right ones
        first = self._open(address.seeds[0])
        self.batcher = LaneRouter(lanes=len(marks.lanes), first=first.batcher)

    @property
    def connections(self) -> int:
        """Connections opened since the start, one for each node not counted: more are reconnections."""
        opened = self._closed_connections + sum(link.connections for link in self._links.values())
        return opened - max(0, len(self._links) - 1)

    async def run(self, beat: Beat = no_beat) -> None:
        """Maintain the links and follow the owners, with a beat each round. Cancel to stop: all orders end at once."""
        look_at = 0.0
        try:
            while True:
                beat()
                now = time.monotonic()
                if now >= look_at:
                    await self._look()
                    look_at = time.monotonic() + (LOOK_S if self._is_settled() else LOOK_AGAIN_S)
                self._on_sweep(time.monotonic_ns())
                for work in self._work.values():
                    if work.done():
                        work.result()  # a link ends with an exception only
                if await wait_within(self._news, min(ROUND_S, max(0.01, look_at - time.monotonic()))):
                    self._news.clear()
                    look_at = min(look_at, time.monotonic() + LOOK_AGAIN_S)
        finally:
            await tasks.cancel(*self._work.values())
            self._work.clear()

    def _is_settled(self) -> bool:
        return all(self._links[node].batcher.is_connected for node in set(self._owners))

    async def _look(self) -> None:
        """Read the owners of all lanes, and move the lanes that have another one."""
        try:
            owners = await self._redis.owners([topology.lane_state_key(lane) for lane in self._marks.lanes])
        except (RedisError, OSError, TimeoutError) as error:
            _log.warning("owners_of_lanes_unknown", error=str(error) or type(error).__name__)
            return
        # Before the links start: a new link compares the sequences of its lanes before its first batch leaves.
        wanted = [owner or before for owner, before in zip(owners, self._owners, strict=True)]
        for lane, node in enumerate(wanted):
            self._give(lane, node)
        self._share_lanes()
        self._start()
        await self._close_unused()

    def _give(self, lane: int, node: Node) -> None:
        if node == self._owners[lane]:
            return
        if node not in self._links and len(self._links) >= NODES_MAX:
            _log.error("too_many_nodes", lane=lane, nodes=len(self._links))
            return
        link = self._links.get(node)
        if link is None:
            link = self._open(node)
            self.batcher.add(link.batcher)
        _log.info("lane_moved", lane=lane, node=f"{node[0]}:{node[1]}")
        self._owners[lane] = node
        self.batcher.move(lane, link.batcher)

    def _open(self, node: Node) -> RedisLink:
        address = RedisAddress(
            host=node[0], port=node[1], username=self._address.username, password=self._address.password,
            tls=self._address.tls,
        )  # fmt: skip
        self._links[node] = link = RedisLink(
            address,
            lambda wake: self._make_batcher(wake, self._redirected),
            silence_s_max=self._silence_s_max,
            on_sweep=lambda _: None,
            marks=self._marks,
            lanes=(),
        )
        return link

    def _share_lanes(self) -> None:
        for node, link in self._links.items():
            link.lanes = tuple(lane for lane, owner in enumerate(self._owners) if owner == node)

    def _start(self) -> None:
        for node, link in self._links.items():
            if node not in self._work:
                self._work[node] = asyncio.create_task(link.run(), name=f"redis link {node[0]}:{node[1]}")

    async def _close_unused(self) -> None:
        """Close links without lanes once their last replies have come."""
        for node in [node for node in self._links if node not in self._owners]:
            link = self._links[node]
            if node in self._owners or link.batcher.queued or link.batcher.in_flight:
                continue
            del self._links[node]
            self._closed_connections += link.connections
            self.batcher.retire(link.batcher)
            await tasks.cancel(self._work.pop(node))

    def _redirected(self, lane: int, error: str) -> None:
        """A node does not have the lane, or not at the moment. Called while its replies are processed."""
        self._news.set()
        word, _, rest = error.partition(" ")
        if word != "MOVED" or lane not in self._marks.lanes:
            return
        host, _, port = rest.partition(" ")[2].rpartition(":")
        with contextlib.suppress(ValueError):
            node = (host or self._owners[lane][0], int(port))
            self._give(lane, node)
            self._share_lanes()
            self._start()
