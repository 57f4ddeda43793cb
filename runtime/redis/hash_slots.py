"""Which node of a Redis Cluster owns which slot, and the slot of a command. Performs no I/O.

https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from redis.crc import key_slot

from runtime.redis.addresses import Node

SLOTS: Final = 16384
_SCRIPTS: Final = frozenset({"EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO"})
_STREAM_READS: Final = frozenset({"XREAD", "XREADGROUP"})
_KEYLESS: Final = frozenset(
    {
        "TIME",
        "INFO",
        "PING",
        "CONFIG GET",
        "CONFIG SET",
        "PUBLISH",
        "CLUSTER",
        "CLIENT LIST",
        "CLIENT SETNAME",
        "DBSIZE",
    }
)


class SlotMap:
    """The owner of each slot, as the cluster told it last."""

    def __init__(self) -> None:
        self._owners: list[Node | None] = [None] * SLOTS

    def owner(self, slot: int) -> Node | None:
        """The node that owns the slot; None for a slot without an owner."""
        return self._owners[slot]

    def set_owner(self, slot: int, node: Node) -> None:
        """After MOVED."""
        self._owners[slot] = node

    @property
    def primaries(self) -> list[Node]:
        """Every node that owns a slot, in the order of the slots."""
        return list(dict.fromkeys(node for node in self._owners if node is not None))

    def take(self, answer: Sequence[Any], *, asked: Node) -> None:
        """Take an answer to CLUSTER SLOTS of the node `asked`. A slot that it leaves out has no owner."""
        owners: list[Node | None] = [None] * SLOTS
        for first, last, primary, *_ in answer:
            host, port = primary[0], int(primary[1])
            name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host or "")
            node = (name or asked[0], port)  # an empty name: the address by which the node was asked
            owners[int(first) : int(last) + 1] = [node] * (int(last) + 1 - int(first))
        self._owners = owners


def slot_of(key: bytes | str) -> int:
    """The slot of a key: of its hash tag, if it has one."""
    return int(key_slot(key.encode() if isinstance(key, str) else key))


def slot_of_command(args: Sequence[Any]) -> int | None:
    """The slot of a command's first key; None for a command without keys. `args[0]` is the name as redis-py writes it.

    All keys of a command must be in one slot, otherwise the node answers CROSSSLOT.
    """
    name = args[0]
    if name in _KEYLESS or len(args) < 2:
        return None
    if name in _SCRIPTS:
        return slot_of(args[3]) if int(args[2]) else None
    if name in _STREAM_READS:
        words = [word.upper() if isinstance(word, (bytes, str)) else word for word in args]
        place = next(i for i, word in enumerate(words) if word in (b"STREAMS", "STREAMS"))
        return slot_of(args[place + 1])
    key = args[1]
    return slot_of(key if isinstance(key, (bytes, str)) else str(key))
