"""The newest sequence of each lane that this worker has seen, to detect a Redis that lost data. Performs no I/O.

The order path reads the sequences a few times a second while it sends orders, and on each new connection before the
first batch leaves (`edge.redis_link`). It never reads them for a single order.
"""

from __future__ import annotations

from collections.abc import Mapping

from domain import topology
from hotpath.resp import ReplyError
from reservation.reading import SEQUENCE_FIELD


class LaneMarks:
    """The newest sequence seen of each lane of the cluster. The connections of a worker share it."""

    def __init__(self, lanes: int) -> None:
        """`lanes`: the cluster's number of lanes; 0 watches none."""
        self._commands = [
            [b"HGET", topology.lane_state_key(lane).encode(), SEQUENCE_FIELD.encode()] for lane in range(lanes)
        ]
        self._seen = [0] * lanes

    @property
    def lanes(self) -> range:
        """All lanes."""
        return range(len(self._commands))

    def command(self, lane: int) -> list[bytes]:
        """The command that reads the lane's sequence."""
        return self._commands[lane]

    def behind(self, replies: Mapping[int, object]) -> list[int]:
        """Lanes with a sequence below the newest seen. An error reply tells nothing: the lane is at another node."""
        return [lane for lane, reply in replies.items() if self.is_behind(lane, reply)]

    def is_behind(self, lane: int, reply: object) -> bool:
        """Whether the lane has a sequence below the newest seen."""
        return not isinstance(reply, ReplyError) and _sequence(reply) < self._seen[lane]

    def start_from(self, replies: Mapping[int, object]) -> None:
        """Take the sequences of `replies` as the newest seen, even if they are lower."""
        for lane, reply in replies.items():
            if not isinstance(reply, ReplyError):
                self._seen[lane] = _sequence(reply)

    def saw(self, lane: int, reply: object) -> None:
        """Take one reply while orders flow; an error reply is ignored."""
        if not isinstance(reply, ReplyError):
            self._seen[lane] = max(self._seen[lane], _sequence(reply))


def _sequence(reply: object) -> int:
    """Sequence of a reply; 0 for a lane without one."""
    return int(reply) if isinstance(reply, bytes) and reply.isdigit() else 0
