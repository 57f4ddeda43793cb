"""A partition of a RabbitMQ cluster: the stack's node and two more, one of them cut off, then the stack's own.

Nodes are cut off by their distribution cookies: neither side can connect again until the cookies are equal.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from devstack.plan import QueueKind
from devstack.rabbitmq import RabbitServer
from faults.conditions import Needs
from faults.scenario import Drill, Fault
from faults.variation import Variation

CUT_S = 4.0
NODES = 3
_RELAYED = "flashsale_relay_published_entries_total"


async def partitioned(drill: Drill) -> str:
    """Cut one node off, then the node that the processes use."""
    async with _cluster(drill) as (own, others):
        before = await drill.stage.metric("relay-0", _RELAYED)
        async with _cut_off(others[-1], [own, *others[:-1]]):
            await asyncio.sleep(CUT_S)
            beside = await drill.stage.metric("relay-0", _RELAYED)
            if beside <= before:
                drill.fail("F", "with one of three nodes cut off, no order reached the queues")
        async with _cut_off(own, others):
            # A paused node closes its listeners.
            await drill.stage.until(lambda: not own.is_ready(), "the node without a majority did not pause")
            await asyncio.sleep(CUT_S)
        await drill.stage.until(own.is_ready, "the node did not come back to its majority")
    return f"one node of {NODES} cut off: {beside - before:.0f} entries passed; then the processes' own node paused"


@asynccontextmanager
async def _cluster(drill: Drill) -> AsyncIterator[tuple[RabbitServer, list[RabbitServer]]]:
    """The stack's node, and two more that joined it and hold members of all queues. They leave at the end."""
    folder = drill.stage.folder.data / "rabbitmq"
    raw = await asyncio.to_thread(Path(f"/proc/{drill.stage.pid('rabbitmq')}/environ").read_bytes)
    env = dict(item.split("=", 1) for item in raw.decode().split("\0") if "=" in item)
    password = drill.stage.folder.secret("rabbitmq_password")
    epmd_port = int(env["ERL_EPMD_PORT"])
    port = Variation.read(drill.stage.folder).ports["queue"]
    own = RabbitServer(folder, epmd_port=epmd_port, password=password, port=port)
    others = [
        RabbitServer(drill.stage.folder.data / f"node-{number}", epmd_port, password, name=f"node{number}")
        for number in range(1, NODES)
    ]
    try:
        for server in others:
            server.folder.mkdir(mode=0o700)
            shutil.copy(folder / ".erlang.cookie", server.folder / ".erlang.cookie")
        for server in others:
            server.begin()
            await asyncio.to_thread(server.wait_ready)
            await _control(server, "stop_app")
            await _control(server, "join_cluster", own.node)
            await _control(server, "start_app")
            await asyncio.to_thread(own.queues, "grow", server.node, "all")
        yield own, others
        for server in others:
            await asyncio.to_thread(own.queues, "shrink", server.node)
            await _control(server, "stop_app")
            await _control(server, "reset")
    finally:
        for server in others:
            await asyncio.to_thread(server.stop)


@asynccontextmanager
async def _cut_off(node: RabbitServer, others: list[RabbitServer]) -> AsyncIterator[None]:
    cookie = (await asyncio.to_thread((node.folder / ".erlang.cookie").read_text)).strip()
    names = [f"'{other.node}'" for other in others]
    cut = ", ".join(f"erlang:set_cookie({name}, wrong), erlang:disconnect_node({name})" for name in names)
    heal = ", ".join(f"erlang:set_cookie({name}, '{cookie}')" for name in names)
    meet = ", ".join(f"net_kernel:connect_node({name})" for name in names)
    await _control(node, "eval", f"{cut}.")
    try:
        yield
    finally:
        await _control(node, "eval", f"{heal}, {meet}.")


async def _control(server: RabbitServer, *arguments: str) -> str:
    return await asyncio.to_thread(server.control, *arguments)


FAULTS = [
    Fault(
        "rabbitmq-partition", "of three RabbitMQ nodes one is cut off, then the node that the processes use",
        "the majority goes on; without one, orders wait in the lanes until the partition is over",
        partitioned, needs=Needs(queue=QueueKind.RABBITMQ, own="cluster"),
    ),
]  # fmt: skip
