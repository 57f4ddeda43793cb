"""The stack that a fault needs, and the two ways in which a fault does not take place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class NotFired(Exception):
    """The fault did not happen, so the drill proves nothing; the message names the missing event."""


class NotHere(Exception):
    """This machine does not allow the fault; the message is the reason."""


class Door(StrEnum):
    """The doors of the edge that buyers use, and of which a fault at a door attacks one."""

    GRANIAN = "granian"
    DIRECT = "direct"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Needs:
    """Requirements on a fault's stack. Faults with equal needs share a stack, one after the other."""

    limits: Mapping[str, str] = field(default_factory=dict)  # settings of all processes, lower case, without prefix
    launchers: Mapping[str, list[str]] = field(default_factory=dict)
    small_disk: bool = False  # Redis keeps its data in a small file system of its own
    state_disk: bool = False  # the whole folder of the stack is in a file system of its own
    event_log: str = "redis"  # its carrier: redis or kafka
    queue: str = "redis"  # carrier of the work queues, a `devstack.plan.QueueKind`
    reservation: str = "redis"  # where the lanes are, a `devstack.plan.ReservationKind`
    own: str = ""  # a name: the fault runs on a stack of its own, because it leaves damage behind

    @property
    def key(self) -> str:
        """Equal for equal needs."""
        return repr(self)
