"""Failover of a pair of PostgreSQL servers: the standby becomes the primary, the old primary its standby.

    1 fence     the old primary is stopped, and its data is marked: it can only start as a standby from now on
    2 promote   the standby takes writes; no COMMIT waits for a standby that is not there
    3 repoint   the pooler sends its clients to the new primary
    4 rejoin    `pg_rewind` undoes what only the old primary had; it follows the new one
    5 in step   COMMITs wait for the standby again

An interrupted run is finished by the next one. The order is what keeps a pair from having two primaries: nothing is
promoted before the mark is on the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import psycopg

from devstack.children import log_tail, spawn
from devstack.places import write_private
from devstack.postgres_pair import Fence, PostgresNode, PostgresPair
from runtime.process.errors import OperatorError

REWIND_S_MAX: Final = 300.0
IN_STEP_S_MAX: Final = 60.0
LOOK_S: Final = 0.05

Say = Callable[[str], None]


class FailoverError(OperatorError):
    """The failover cannot begin, or stopped; the message says at which step, and that it can be run again."""


class Control(Protocol):
    """Starts and stops the servers of the pair, whichever process owns them."""

    def hold(self, node: PostgresNode) -> None:
        """End the server, also one that does not answer, and keep it down. Return when its process is gone."""
        ...

    def release(self, node: PostgresNode) -> None:
        """Let the server run again."""
        ...


@dataclass(frozen=True, slots=True)
class FailedOver:
    """`away_s`: from the end of the old primary until the new one took writes. `rejoined` by `rewind` or by `clone`."""

    primary: str
    standby: str
    away_s: float
    took_s: float
    rejoined: str


def fail_over(pair: PostgresPair, *, control: Control, repoint: Callable[[PostgresNode], None], say: Say) -> FailedOver:
    """Run all steps. `repoint` gets the new primary. Raises FailoverError, psycopg.Error, ServerError."""
    began = time.monotonic()
    old, new = _roles(pair)
    if not old.is_fenced:
        _check(pair, old, new)
    if old.fenced is not Fence.FOLLOWING:
        say(f"fencing {old.name}")
        _fence(old, new, control)
    fenced = time.monotonic()
    say(f"promoting {new.name}")
    _promote(new)
    repoint(new)
    away_s = time.monotonic() - fenced
    say(f"rejoining {old.name} as the standby")
    rejoined = _rejoin(old, new, control)
    say("waiting until it is in step")
    _await_in_step(pair, old, new)
    return FailedOver(new.name, old.name, away_s, time.monotonic() - began, rejoined)


def _roles(pair: PostgresPair) -> tuple[PostgresNode, PostgresNode]:
    """The primary to replace, and its successor; those of an interrupted run when there was one."""
    for old, new in ((pair.first, pair.second), (pair.second, pair.first)):
        if old.is_fenced:
            return old, new
    return pair.primary, pair.standby


def _check(pair: PostgresPair, old: PostgresNode, new: PostgresNode) -> None:
    """Refuse a standby that cannot take over without loss."""
    try:
        ((recovering,),) = new.ask("SELECT pg_is_in_recovery()")
    except psycopg.Error as error:
        raise FailoverError(f"{new.name} does not answer, so it cannot take over: {error}") from error
    if not recovering:
        raise FailoverError(f"{new.name} is no standby: nothing was changed")
    if pair.synchronous:
        return  # each COMMIT that was answered is on the standby's disk
    try:
        following = pair.following()
    except psycopg.Error:
        following = None
    if following is None:
        raise FailoverError(
            f"{new.name} is an asynchronous standby and {old.name} does not answer: answered COMMITs may be missing "
            "from it. Start the primary again, or restore it"
        )


def _fence(old: PostgresNode, new: PostgresNode, control: Control) -> None:
    # The mark first: whatever starts the server after a crash of this process reads it.
    if old.fenced is None:
        write_private(old.fence, Fence.FENCED, user=None)
    control.hold(old)
    write_private(old.data / "standby.signal", "", user=old.user)
    old.write_role(follows=new, awaits=None)


def _promote(new: PostgresNode) -> None:
    new.write_role(follows=None, awaits=None)
    new.ask("SELECT pg_reload_conf()")
    new.promote()
    new.ask("CHECKPOINT")  # pg_rewind reads the new timeline from the control file


def _rejoin(old: PostgresNode, new: PostgresNode, control: Control) -> str:
    """Make the old primary the standby of the new one; the way. Its data is replaced when it cannot be rewound."""
    if old.fenced is Fence.FOLLOWING:
        control.release(old)
        return "rewind"
    rewind = old.fenced is Fence.FENCED
    write_private(old.fence, Fence.REWINDING, user=None)
    new.drop_lost_slot(old.name)
    new.make_slot(old.name)
    if rewind and _rewind(old, new):
        way = "rewind"
        write_private(old.data / "standby.signal", "", user=old.user)
    else:
        way = "clone"
        old.clone(new)
    old.write_role(follows=new, awaits=None)
    write_private(old.fence, Fence.FOLLOWING, user=None)
    control.release(old)
    return way


def _rewind(old: PostgresNode, new: PostgresNode) -> bool:
    # A standby cannot end its crash recovery alone. The server is held, and whatever starts a stack looks at the fence.
    (old.data / "standby.signal").unlink(missing_ok=True)
    argv = [
        old.program("pg_rewind"),
        "--target-pgdata",
        str(old.data),
        "--source-server",
        f"{old.conninfo(new)} dbname=postgres",
    ]
    return spawn(argv, env=old.env, log=old.log, user=old.user).wait(REWIND_S_MAX) == 0


def _await_in_step(pair: PostgresPair, old: PostgresNode, new: PostgresNode) -> None:
    deadline = time.monotonic() + IN_STEP_S_MAX
    awaits = False
    while not pair.in_step():
        if time.monotonic() >= deadline:
            raise FailoverError(
                f"{new.name} takes writes, but {old.name} is not in step after {IN_STEP_S_MAX:.0f} s: "
                f"{log_tail(old.log)}"
            )
        following = pair.following()
        if pair.synchronous and not awaits and following is not None and following.state == "streaming":
            # Only now: before, each COMMIT would have waited for a standby that copied.
            new.write_role(follows=None, awaits=old)
            new.ask("SELECT pg_reload_conf()")
            awaits = True
        time.sleep(LOOK_S)
    old.fence.unlink(missing_ok=True)
