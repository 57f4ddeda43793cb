"""A Redis Cluster of real servers on loopback: primaries with a replica each. Starts, forms, moves slots.

Does not supervise. The first `primaries` nodes begin as primaries, the others as their replicas in the same order;
after a failover the roles are those that the nodes report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import redis

from devstack.children import free_port
from devstack.server_process import ServerError
from devstack.servers import RedisServer
from runtime.redis.addresses import ClusterAddress

SLOTS: Final = 16384
FORM_S_MAX: Final = 60.0
KEYS_PER_MIGRATE: Final = 200
MIGRATE_MS_MAX: Final = 5000
_LOOK_S: Final = 0.05


@dataclass(slots=True)
class SlotMove:
    """A slot on its way from one primary to another, as `redis-cli --cluster reshard` moves it: step by step."""

    slot: int
    source: redis.Redis
    target: redis.Redis
    others: list[redis.Redis]

    def begin(self) -> None:
        """From now on the source sends requests for absent keys to the target (ASK)."""
        _run(self.target, "CLUSTER", "SETSLOT", self.slot, "IMPORTING", _id(self.source))
        _run(self.source, "CLUSTER", "SETSLOT", self.slot, "MIGRATING", _id(self.target))

    def move_keys(self, keys_max: int = KEYS_PER_MIGRATE) -> int:
        """Move some keys; their number, 0 when none is left."""
        keys: Any = _run(self.source, "CLUSTER", "GETKEYSINSLOT", self.slot, keys_max)
        if keys:
            target = self.target.get_connection_kwargs()
            login = ("AUTH", target["password"]) if target.get("password") else ()
            _run(self.source, "MIGRATE", "127.0.0.1", target["port"], "", 0, MIGRATE_MS_MAX, *login, "KEYS", *keys)
        return len(keys)

    def finish(self) -> None:
        """Move the rest, and give the slot to the target: from then on the source answers MOVED."""
        while self.move_keys():
            pass
        owner = _id(self.target)
        for node in (self.target, self.source, *self.others):
            _run(node, "CLUSTER", "SETSLOT", self.slot, "NODE", owner)


@dataclass(slots=True)
class RedisCluster:
    """`primaries` primaries, and a replica of each, under `folder`. `node_timeout_ms`: silence before a failover."""

    folder: Path
    primaries: int = 3
    durable: bool = True
    node_timeout_ms: int = 2000
    extra: tuple[str, ...] = ()
    password: str | None = field(default=None, repr=False)
    supervised: bool = False  # another process starts the nodes, and starts them again
    nodes: list[RedisServer] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Choose the ports of the nodes, unless there are any."""
        if self.nodes:
            return
        for number in range(2 * self.primaries):
            self.nodes.append(
                RedisServer(
                    self.folder / f"node-{number}",
                    durable=self.durable,
                    password=self.password,
                    extra=(
                        *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"),
                        *("--cluster-port", str(free_port()), "--cluster-node-timeout", str(self.node_timeout_ms)),
                        # A node that comes back is a replica at once, not after the default of 5 s.
                        *("--repl-diskless-sync-delay", "0"),
                        # A primary that fails takes its own slots away, and no others.
                        *("--cluster-require-full-coverage", "no", *self.extra),
                    ),
                )
            )

    @classmethod
    def at(cls, url: str, folder: Path) -> RedisCluster:
        """A cluster that a supervisor runs, by the address of all its nodes."""
        address = ClusterAddress.parse(url)
        nodes = [
            RedisServer(folder / f"node-{number}", port=port, password=address.password or None)
            for number, (_, port) in enumerate(address.seeds)
        ]
        return cls(folder, primaries=len(nodes) // 2, password=address.password or None, supervised=True, nodes=nodes)

    @property
    def url(self) -> str:
        """The `redis+cluster://` address with every node. Contains the password: never log it."""
        login = f":{self.password}@" if self.password else ""
        return f"redis+cluster://{login}" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def start(self) -> None:
        """Start all nodes and form the cluster, unless their folders have one. Raises ServerError."""
        for node in self.nodes:
            node.start()
        self.form()

    def initialise(self) -> None:
        """Create the data folders, for a supervisor that starts the nodes."""
        for node in self.nodes:
            node.initialise()

    def stop(self) -> None:
        """Stop every node that runs."""
        for node in self.nodes:
            node.stop()

    def destroy(self) -> None:
        """Stop the nodes and remove their data."""
        for node in self.nodes:
            node.destroy()

    def form(self) -> None:
        """Make a cluster of the running nodes, if they are none yet, and wait until it serves every slot.

        Nodes that are one already, and have other ports than in the run before, find one another again.
        """
        clients = [self.client(node) for node in self.nodes]
        is_new = _known(clients[0]) == 1
        if is_new:
            for number, client in enumerate(clients):
                _run(client, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            bus = node.extra[node.extra.index("--cluster-port") + 1]
            _run(clients[0], "CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        if is_new:
            for number in range(self.primaries):
                first, last = number * SLOTS // self.primaries, (number + 1) * SLOTS // self.primaries - 1
                _run(clients[number], "CLUSTER", "ADDSLOTSRANGE", first, last)
            self._await(lambda: all(_known(client) == len(clients) for client in clients), "nodes that know each other")
            for number in range(self.primaries, len(clients)):
                self._replicate(clients[number], _id(clients[number - self.primaries]))
        self.await_healthy()
        for client in clients:
            client.close()

    def _replicate(self, client: redis.Redis, primary: str) -> None:
        def accepted() -> bool:
            try:
                _run(client, "CLUSTER", "REPLICATE", primary)
            except redis.ResponseError:  # the node has not heard of the primary's slots yet
                return False
            return True

        self._await(accepted, "a replica that accepts its primary")

    def await_healthy(self) -> None:
        """Wait until every running node serves all slots, and each running replica follows its primary."""
        self._await(self._is_healthy, "a healthy cluster")

    def _is_healthy(self) -> bool:
        for node in self.nodes:
            if not self._runs(node):
                continue
            with self.client(node) as client:
                try:
                    told: Any = _run(client, "CLUSTER", "INFO")
                    state: Any = client.info("replication")
                except redis.RedisError:
                    return False
                served = b"cluster_state:ok" in told and b"cluster_slots_ok:%d" % SLOTS in told
                if not served or (state["role"] == "slave" and state["master_link_status"] != "up"):
                    return False
        return True

    def client(self, node: RedisServer) -> redis.Redis:
        """A plain client of one node."""
        return redis.Redis(port=node.port, password=self.password, socket_timeout=5)

    def owner_of(self, slot: int) -> RedisServer:
        """The running node that serves a slot as a primary. LookupError if there is none."""
        for node in self.nodes:
            if not self._runs(node):
                continue
            with self.client(node) as client:
                try:
                    ranges: Any = _run(client, "CLUSTER", "SLOTS")
                    role = client.info("replication")["role"]
                except redis.RedisError:
                    continue
            mine = {int(primary[1]) for first, last, primary, *_ in ranges if int(first) <= slot <= int(last)}
            if role == "master" and node.port in mine:
                return node
        raise LookupError(f"no running node serves slot {slot}")

    def current_primaries(self) -> list[RedisServer]:
        """The running nodes that are primaries now."""
        return [node for node in self.nodes if self._runs(node) and self._role(node) == "master"]

    def _runs(self, node: RedisServer) -> bool:
        """Whether the node is expected to answer: a supervisor's nodes always are."""
        return node.process is not None or self.supervised

    def _role(self, node: RedisServer) -> str:
        with self.client(node) as client:
            state: Any = client.info("replication")
        return str(state["role"])

    def move(self, slot: int, *, to: RedisServer) -> SlotMove:
        """A move of the slot, not begun."""
        source = self.owner_of(slot)
        others = [self.client(node) for node in self.current_primaries() if node not in (source, to)]
        return SlotMove(slot, self.client(source), self.client(to), others)

    def _await(self, condition: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + FORM_S_MAX
        while not condition():
            if time.monotonic() > deadline:
                raise ServerError(f"redis cluster in {self.folder}: no {name} in {FORM_S_MAX:g} s")
            time.sleep(_LOOK_S)


def _run(client: redis.Redis, *command: str | int | bytes) -> Any:
    return client.execute_command(*command)  # type: ignore[no-untyped-call]


def _id(client: redis.Redis) -> str:
    told: Any = _run(client, "CLUSTER", "MYID")
    return bytes(told).decode("ascii")


def _known(client: redis.Redis) -> int:
    told: Any = _run(client, "CLUSTER", "NODES")
    return sum(b"handshake" not in line for line in told.splitlines() if line)
