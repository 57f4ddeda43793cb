"""A client of a Redis Cluster with the interface of `redis.asyncio.Redis`: one bounded pool for each node.

Follows MOVED, ASK and TRYAGAIN, because then the node did not run the command. Never repeats a command that may have
run; the next command reads the owners of the slots again. (redis-py's own cluster client repeats commands, has no
waiting pool, and sends ASKING on a connection that another command may take.)

Commands with keys in several slots are refused by the nodes (CROSSSLOT); only MGET, UNLINK and pipelines are divided.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline, PubSub
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, ResponseError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError

from runtime.redis.addresses import ClusterAddress, Node
from runtime.redis.hash_slots import SlotMap, slot_of, slot_of_command

REDIRECTS_MAX: Final = 32  # of one command; with the pauses below about a second and a half
PAUSE_S: Final = 0.05  # after TRYAGAIN and CLUSTERDOWN: the slot moves, or a replica is about to take over
LOOK_S_MAX: Final = 1.0  # for one node's answer to CLUSTER SLOTS
_CURSOR_BITS: Final = 32  # of a SCAN cursor here: which node it belongs to
_CURSOR_MASK: Final = 2**_CURSOR_BITS - 1

Command = tuple[tuple[Any, ...], dict[str, Any]]  # arguments and options, as redis-py keeps them
_REDIRECTED = (MovedError, AskError, TryAgainError, ClusterDownError)

log = structlog.get_logger()


class ClusterRedis(Redis):
    """All nodes of a cluster as one client. Commands go to the owners of their keys' slots."""

    def __init__(self, address: ClusterAddress, open_node: Callable[[Node], Redis]) -> None:
        """`open_node` makes the client of one node; it connects when it is used."""
        self._seeds = address.seeds
        self._open_node = open_node
        self._nodes: dict[Node, Redis] = {}
        self._slots = SlotMap()
        self._is_stale = True
        self._looking = asyncio.Lock()
        self._subscriptions = 0
        self._looks = 0
        self._silent: set[Node] = set()  # nodes that did not answer the last time they were asked for owners
        super().__init__(connection_pool=self._node(address.seeds[0]).connection_pool)

    # Nodes

    def _node(self, node: Node) -> Redis:
        if node not in self._nodes:
            self._nodes[node] = self._open_node(node)
        return self._nodes[node]

    async def primaries(self) -> list[Redis]:
        """A client of each node that owns slots, in the order of the slots. RedisError when no node answers."""
        await self._look()
        return [self._node(node) for node in self._slots.primaries]

    async def _look(self) -> None:
        """Read the owners of the slots if they are not known, or may have changed."""
        if not self._is_stale:
            return
        async with self._looking:
            if not self._is_stale:
                return
            errors = []
            for node in self._guides():
                try:
                    async with asyncio.timeout(LOOK_S_MAX):
                        answer = await _run(self._node(node), "CLUSTER", "SLOTS")
                except (RedisError, OSError, TimeoutError) as error:
                    errors.append(f"{node[0]}:{node[1]} {str(error) or type(error).__name__}")
                    self._silent.add(node)
                    continue
                self._silent.discard(node)
                if not answer:
                    errors.append(f"{node[0]}:{node[1]} knows no owner of a slot")
                    continue
                self._slots.take(answer, asked=node)
                self._is_stale = False
                await self._close_others()
                return
            raise RedisConnectionError(f"no node of the cluster answers: {'; '.join(errors)}")

    def _guides(self) -> list[Node]:
        """The nodes to ask: each time another one first, since one may be cut off from the others; silent ones last."""
        nodes = list(dict.fromkeys([*self._slots.primaries, *self._seeds]))
        self._looks += 1
        turn = self._looks % len(nodes)
        return sorted(nodes[turn:] + nodes[:turn], key=lambda node: node in self._silent)

    async def _close_others(self) -> None:
        """Close the idle connections to nodes without slots. A node that gets slots again is opened again."""
        kept = {*self._slots.primaries, *self._seeds}
        self._silent &= kept
        for node in [node for node in self._nodes if node not in kept]:
            await self._nodes.pop(node).connection_pool.disconnect(inuse_connections=False)

    async def _owner(self, slot: int | None) -> Redis:
        await self._look()
        if slot is None:
            slot = 0  # one and the same node for everything without a key, as long as it lives
        node = self._slots.owner(slot)
        if node is None:
            self._is_stale = True
            raise RedisConnectionError(f"no node owns slot {slot}")
        return self._node(node)

    async def owners(self, keys: Sequence[bytes | str]) -> list[Node | None]:
        """The node that owns each key's slot, after a new look at the cluster. RedisError when no node answers."""
        self._is_stale = True
        await self._look()
        return [self._slots.owner(slot_of(key)) for key in keys]

    async def owner_of(self, key: bytes | str) -> Redis:
        """The client of the node that owns a key's slot."""
        return await self._owner(slot_of(key))

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: ARG002 - as in redis-py
        """Close the connections to all nodes."""
        for node in list(self._nodes.values()):
            await node.aclose(close_connection_pool=True)

    # Commands

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command at the owner of its keys. SCRIPT LOAD runs at every node that owns slots."""
        if args[0] in ("SCRIPT LOAD", "SCRIPT FLUSH"):
            nodes = await self.primaries()
            answers = await asyncio.gather(*(self._noting(_run(node, *args, **options)) for node in nodes))
            return answers[0]
        return await self._follow(args, options)

    async def _noting(self, answer: Awaitable[Any]) -> Any:
        """Await a node's answer. After a lost node the owners are read again before the next command."""
        try:
            return await answer
        except (RedisError, OSError) as error:
            if not isinstance(error, ResponseError) or isinstance(error, AskError):
                self._is_stale = True
            raise

    async def _follow(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        slot = slot_of_command(args)
        last: RedisError | None = None
        for attempt in range(REDIRECTS_MAX):
            node = await self._owner(slot)
            try:
                return await self._noting(_run(node, *args, **options))
            except AskError as error:
                last = error
                if not isinstance(error, MovedError):  # a MovedError is an AskError for redis-py
                    try:
                        return await self._ask(error, args, options)
                    except _REDIRECTED as again:
                        last = again
                        await asyncio.sleep(PAUSE_S)
                    continue
                self._moved(error, node)
                if attempt:
                    await asyncio.sleep(PAUSE_S)  # two nodes disagree
            except (TryAgainError, ClusterDownError) as error:
                last = error
                self._is_stale = True
                await asyncio.sleep(PAUSE_S)
        assert last is not None
        raise last

    async def _ask(self, error: AskError, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Run the command at the node that takes over the slot: ASKING applies to the next command of a connection."""
        async with self._node((error.host or self._seeds[0][0], error.port)).pipeline(transaction=False) as pipeline:
            pipeline.execute_command("ASKING")
            pipeline.execute_command(*args, **options)
            _, answer = await self._noting(pipeline.execute(raise_on_error=False))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _moved(self, error: AskError, node: Redis) -> None:
        host = error.host or str(node.connection_pool.connection_kwargs["host"])
        self._slots.set_owner(error.slot_id, (host, error.port))
        self._is_stale = True  # a slot rarely moves alone

    async def execute_many(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands, one round trip to each node. An error stands in its command's place, a lost node's as well.

        Commands to one node keep their order. One that was redirected runs after all others.
        """
        groups: dict[Redis, list[int]] = {}
        for place, (args, _) in enumerate(commands):
            groups.setdefault(await self._owner(slot_of_command(args)), []).append(place)
        answers: list[Any] = [None] * len(commands)
        await asyncio.gather(*(self._execute_at(node, places, commands, answers) for node, places in groups.items()))
        for place, answer in enumerate(answers):
            if isinstance(answer, _REDIRECTED):
                args, options = commands[place]
                try:
                    answers[place] = await self._follow(args, options)
                except (RedisError, OSError) as error:
                    answers[place] = error
        return answers

    async def _execute_at(
        self, node: Redis, places: Sequence[int], commands: Sequence[Command], answers: list[Any]
    ) -> None:
        async with node.pipeline(transaction=False) as pipeline:
            for place in places:
                args, options = commands[place]
                pipeline.execute_command(*args, **options)
            try:
                found = await self._noting(pipeline.execute(raise_on_error=False))
            except (RedisError, OSError) as error:
                found = [error] * len(places)
        for place, answer in zip(places, found, strict=True):
            answers[place] = answer

    # Methods of redis-py with another meaning in a cluster

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """A pipeline. A transaction takes keys of one slot only."""
        assert shard_hint is None
        return _ClusterPipeline(self, transaction)

    def pubsub(self, **kwargs: Any) -> PubSub:
        """A subscription at one node, each time at another one: nodes pass messages on to all others."""
        nodes = self._slots.primaries or list(self._seeds)
        self._subscriptions += 1
        return self._node(nodes[self._subscriptions % len(nodes)]).pubsub(**kwargs)

    async def mget(self, keys: Any, *args: Any) -> list[Any]:
        """Values in the order of the keys, which may be in any slots."""
        names = [*([keys] if isinstance(keys, (bytes, str)) else keys), *args]
        return await self._divided("MGET", names)

    async def _divided(self, command: str, names: Sequence[bytes | str]) -> list[Any]:
        by_slot: dict[int, list[int]] = {}
        for place, name in enumerate(names):
            by_slot.setdefault(slot_of(name), []).append(place)
        commands: list[Command] = [((command, *(names[place] for place in places)), {}) for places in by_slot.values()]
        values: list[Any] = [None] * len(names)
        for places, answer in zip(by_slot.values(), await self.execute_many(commands), strict=True):
            if isinstance(answer, Exception):
                raise answer
            for place, value in zip(places, answer, strict=True):
                values[place] = value
        return values

    async def scan(
        self, cursor: int | str = 0, match: Any = None, count: int | None = None, _type: str | None = None, **_: Any
    ) -> Any:
        """A part of the keys of all nodes; of one node only, when `match` begins with a complete hash tag.

        The cursor is valid for one node at a time. When that node has lost its slots, the scan starts over.
        """
        nodes = await self._scanned(match)
        names = [zlib.crc32(f"{node[0]}:{node[1]}".encode()) or 1 for node in nodes]
        at, name = int(cursor) >> _CURSOR_BITS, int(cursor) & _CURSOR_MASK
        place = names.index(name) if name in names else 0
        if name not in names:
            at = 0
        words: list[Any] = ["SCAN", at]
        words += [] if match is None else ["MATCH", match]
        words += [] if count is None else ["COUNT", count]
        words += [] if _type is None else ["TYPE", _type]
        at, keys = await self._noting(_run(self._node(nodes[place]), *words))
        if at == 0:
            place += 1
        return (at << _CURSOR_BITS | names[place]) if place < len(names) else 0, keys

    async def _scanned(self, match: bytes | str | None) -> list[Node]:
        await self._look()
        pattern = match.encode() if isinstance(match, str) else match or b""
        tag = pattern[1 : pattern.find(b"}")] if pattern.startswith(b"{") and b"}" in pattern else b""
        if not tag or set(tag) & set(b"*?[\\"):
            return sorted(self._slots.primaries)
        owner = self._slots.owner(slot_of(tag))
        if owner is None:
            raise RedisConnectionError("no node owns the slot of the scan")
        return [owner]


def _run(redis: Redis, *args: Any, **options: Any) -> Awaitable[Any]:
    answer: Awaitable[Any] = redis.execute_command(*args, **options)  # type: ignore[no-untyped-call]
    return answer


class _ClusterPipeline(Pipeline):
    """Commands for any nodes; or, as a transaction, for the node of its first key."""

    def __init__(self, cluster: ClusterRedis, transaction: bool) -> None:
        super().__init__(cluster.connection_pool, cluster.response_callbacks, transaction, None)
        self._cluster = cluster

    async def watch(self, *names: Any) -> Any:  # type: ignore[override]
        """Watch keys of one slot. The whole transaction runs at its node."""
        self.connection_pool = (await self._cluster.owner_of(names[0])).connection_pool
        return await self._cluster._noting(super().watch(*names))

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Answers in the order of the commands."""
        stack: list[Command] = [(args, dict(options)) for args, options in self.command_stack]
        if self.is_transaction or self.explicit_transaction:
            if stack and not self.watching:
                slot = next((slot for args, _ in stack if (slot := slot_of_command(args)) is not None), None)
                self.connection_pool = (await self._cluster._owner(slot)).connection_pool
            answers: list[Any] = await self._cluster._noting(super().execute(raise_on_error))
            return answers
        await self.reset()  # type: ignore[no-untyped-call]
        answers = await self._cluster.execute_many(stack)
        if raise_on_error:
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        return answers


async def primaries_of(redis: Redis) -> list[Redis]:
    """A client of each server that takes writes: `redis` itself when it is one server."""
    return await redis.primaries() if isinstance(redis, ClusterRedis) else [redis]


async def run_ids(redis: Redis) -> str:
    """The run ids of all servers that take writes: another text means that one restarted or was replaced."""
    answers = await asyncio.gather(*(node.info("server") for node in await primaries_of(redis)))
    return ",".join(sorted(str(answer["run_id"]) for answer in answers))
