"""Who may do what to an account. Performs no I/O.

Owners change their own name and address. Staff do so for buyers, administrators for everybody. Roles are for administrators
to give. Staff must not get at accounts of staff: who sets the address of an account gets its password reset.
"""

from __future__ import annotations

from backoffice.users.store import Change, User
from backoffice.web.messages import Caller, Refused, Role
from domain.problems import Problem


def needs_admin_to_change(caller: Caller, user: User, change: Change) -> bool:
    """Whether this is for administrators only. A role that is given counts also when the account has it."""
    return change.role is not None or needs_admin_to_erase(caller, user)


def needs_admin_to_erase(caller: Caller, user: User) -> bool:
    """Whether this is for administrators only."""
    return user.role != Role.BUYER and caller.user_id != user.id


def require_admin(caller: Caller, account: User | None) -> None:
    """Refused(`forbidden`) unless the caller is an administrator, now: a token outlives a demotion by minutes.

    `account` is the caller's. Callers whose tokens come from a foreign issuer have none.
    """
    if caller.role is not Role.ADMIN or (account is not None and account.role != Role.ADMIN):
        raise Refused(Problem.FORBIDDEN, "Roles, and accounts of staff, are for administrators to change")
