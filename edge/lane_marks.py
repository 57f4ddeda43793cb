"""How far each lane had come when this worker last looked: what tells a Redis that came back with less. Performs no I/O.

The order path asks for the marks a few times a second while it sends orders, and again on each new connection, before the
first batch leaves (`edge.redis_link`). It never asks for the sake of one order.
"""

from __future__ import annotations

from collections.abc import Sequence

from domain import topology
from hotpath.resp import ReplyError

SEQUENCE_FIELD = b"seq"


class LaneMarks:
    """The newest sequence seen of each lane of the cluster."""

    def __init__(self, lanes: int) -> None:
        """`lanes`: the cluster's number of lanes; 0: nothing is watched."""
        self.commands = [[b"HGET", topology.lane_state_key(lane).encode(), SEQUENCE_FIELD] for lane in range(lanes)]
        self._seen = [0] * lanes

    def behind(self, replies: Sequence[object]) -> list[int]:
        """The lanes that show less than they did; `replies` are those to `commands`."""
        return [lane for lane, reply in enumerate(replies) if _sequence(reply) < self._seen[lane]]

    def start_from(self, replies: Sequence[object]) -> None:
        """What is there now is what counts from now on, even if it is less."""
        self._seen = [_sequence(reply) for reply in replies]

    def saw(self, lane: int, reply: object) -> None:
        """One reply of a look while orders flow; an error tells nothing."""
        if not isinstance(reply, ReplyError):
            self._seen[lane] = max(self._seen[lane], _sequence(reply))


def _sequence(reply: object) -> int:
    """0 for a lane that has none."""
    return int(reply) if isinstance(reply, bytes) and reply.isdigit() else 0
