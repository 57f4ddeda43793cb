"""Faults of a Redis Cluster with the lanes: a node that hangs and is killed, and a slot that moves."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import redis

from devstack.plan import CLUSTER_NODES, ReservationKind
from devstack.redis_cluster import RedisCluster
from devstack.servers import RedisServer
from domain.topology import lane_state_key
from faults.conditions import Needs
from faults.scenario import Drill, Fault
from faults.stage import Stage
from runtime.redis.hash_slots import slot_of

TAKE_OVER_S_MAX = 60.0
KEYS_PER_STEP = 100
STEP_PAUSE_S = 0.01


async def node_killed(drill: Drill) -> str:
    """Stop the primary of the sale's lane until its replica has taken over, then kill it: it returns as a replica."""
    cluster, slot = _cluster(drill.stage), slot_of(lane_state_key(drill.lanes[0]))
    owner = await asyncio.to_thread(cluster.owner_of, slot)
    name = CLUSTER_NODES[cluster.nodes.index(owner)]
    pid = drill.stage.pid(name)
    cluster.nodes.remove(owner)  # it answers nothing from now on
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    await drill.stage.until(
        lambda: _has_owner(cluster, slot), f"no replica of {name} took over", within_s=TAKE_OVER_S_MAX
    )
    took_s = time.monotonic() - began
    os.kill(pid, signal.SIGKILL)
    await drill.stage.replaced(name, pid)
    await drill.stage.until(lambda: _follows(cluster, owner), f"{name} did not come back as a replica")
    return f"{name} stopped; its replica took over after {took_s:.1f} s; {name} killed, and back as a replica"


async def slot_moved(drill: Drill) -> str:
    """Move the slot of the sale's lane to another primary while buyers order."""
    cluster, slot = _cluster(drill.stage), slot_of(lane_state_key(drill.lanes[0]))
    source = await asyncio.to_thread(cluster.owner_of, slot)
    target = next(node for node in await asyncio.to_thread(cluster.current_primaries) if node is not source)
    move = await asyncio.to_thread(lambda: cluster.move(slot, to=target))
    await asyncio.to_thread(move.begin)
    keys = 0
    while moved := await asyncio.to_thread(move.move_keys, KEYS_PER_STEP):
        keys += moved
        await asyncio.sleep(STEP_PAUSE_S)
    await asyncio.to_thread(move.finish)
    if await asyncio.to_thread(cluster.owner_of, slot) is not target:
        drill.fail("F", "the slot is not at its new node")
    return f"slot {slot} with {keys} keys moved from node {_name(cluster, source)} to {_name(cluster, target)}"


def _cluster(stage: Stage) -> RedisCluster:
    return RedisCluster.at(stage.stack.redis_url, stage.folder.data / "redis-cluster")


def _name(cluster: RedisCluster, node: RedisServer) -> str:
    return CLUSTER_NODES[cluster.nodes.index(node)]


def _has_owner(cluster: RedisCluster, slot: int) -> bool:
    try:
        cluster.owner_of(slot)
    except LookupError:
        return False
    return True


def _follows(cluster: RedisCluster, node: RedisServer) -> bool:
    try:
        with cluster.client(node) as client:
            state = client.info("replication")
    except redis.RedisError:
        return False
    return isinstance(state, dict) and state["role"] == "slave" and state["master_link_status"] == "up"


# With `fsync` the last orders before a takeover may be lost: their sale is closed and must be rebuilt.
_NEEDS = Needs(limits={"durability": "replicated"}, reservation=ReservationKind.CLUSTER)
FAULTS = [
    Fault(
        "cluster-node-killed", "the primary with the sale's lane hangs until its replica takes over, then it is killed",
        "orders of its lanes are refused or unknown until the replica has a replica; no accepted order is lost",
        node_killed, needs=_NEEDS,
    ),
    Fault(
        "cluster-slot-moved", "the slot of the sale's lane moves to another node of the Redis Cluster under load",
        "orders of the lane wait while its keys move; then every process uses the new node",
        slot_moved, needs=_NEEDS,
    ),
]  # fmt: skip
