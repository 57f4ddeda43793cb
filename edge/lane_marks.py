"""The newest sequence of each lane that this worker has seen, to detect a Redis that lost data. Performs no I/O.

The order path reads the sequences a few times a second while it sends orders, and on each new connection before the
first batch leaves (`edge.redis_link`). It never reads them for a single order.
"""

from __future__ import annotations

from collections.abc import Sequence

from domain import topology
from hotpath.resp import ReplyError
from reservation.reading import SEQUENCE_FIELD


class LaneMarks:
    """The newest sequence seen of each lane of the cluster."""

    def __init__(self, lanes: int) -> None:
        """`lanes`: the cluster's number of lanes; 0 watches none."""
        self.commands = [
            [b"HGET", topology.lane_state_key(lane).encode(), SEQUENCE_FIELD.encode()] for lane in range(lanes)
        ]
        self._seen = [0] * lanes

    def behind(self, replies: Sequence[object]) -> list[int]:
        """Lanes with a sequence below the newest seen; `replies` are those to `commands`."""
        return [lane for lane, reply in enumerate(replies) if _sequence(reply) < self._seen[lane]]

    def start_from(self, replies: Sequence[object]) -> None:
        """Take the sequences of `replies` as the newest seen, even if they are lower."""
        self._seen = [_sequence(reply) for reply in replies]

    def saw(self, lane: int, reply: object) -> None:
        """Take one reply while orders flow; an error reply is ignored."""
        if not isinstance(reply, ReplyError):
            self._seen[lane] = max(self._seen[lane], _sequence(reply))


def _sequence(reply: object) -> int:
    """Sequence of a reply; 0 for a lane without one."""
    return int(reply) if isinstance(reply, bytes) and reply.isdigit() else 0
