"""The act: who is acting, from where, in which request. It belongs to the running task and is no argument of services.

    with act_as(Act(actor=str(user_id), client="203.0.113.7", request_id="...")) as act:
        ...                                     every entry that is recorded inside names this actor

A task without an act works on behalf of its own process.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from runtime.audit.entries import NewEntry

ANONYMOUS: Final = "anonymous"
OWN_WORK: Final = "backoffice"  # work beside requests
_NAME_LENGTH_MAX: Final = 60
_UNUSUAL: Final = re.compile(r"[^!-~]")


@dataclass(slots=True)
class Act:
    """One request or command. `client` is an address as limits count it; `recorded` are its committed entries.

    `email_folded` is the address that a login names, in memory only: it finds the account of a refused login.
    """

    actor: str
    client: str | None = None
    request_id: str | None = None
    recorded: list[NewEntry] = field(default_factory=list)
    email_folded: str | None = field(default=None, repr=False)


_current: ContextVar[Act | None] = ContextVar("act", default=None)


def acting() -> Act:
    """The act of the running task."""
    return _current.get() or Act(OWN_WORK)


@contextmanager
def act_as(act: Act) -> Iterator[Act]:
    """Make this the act of the running task until the block ends."""
    token = _current.set(act)
    try:
        yield act
    finally:
        _current.reset(token)


def operator_act() -> Act:
    """The act of a command: `operator:` and the name of the system's user, which no environment variable changes."""
    user_id = os.getuid()
    try:
        name = pwd.getpwuid(user_id).pw_name
    except KeyError:  # a user id without a name, in a container
        name = str(user_id)
    return Act(f"operator:{_UNUSUAL.sub('_', name)[:_NAME_LENGTH_MAX]}")
