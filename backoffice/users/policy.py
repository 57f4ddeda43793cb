"""Permissions on accounts. Performs no I/O.

Owners change their own name and address. Staff change those of buyers, administrators those of every account. Only
administrators change roles. Staff must not change accounts of staff: a new address is enough to reset the password.
"""

from __future__ import annotations

from backoffice.users.model import Change, User
from backoffice.web.messages import Caller, Refused, Role
from domain.problems import Problem


def needs_admin_to_change(caller: Caller, user: User, change: Change) -> bool:
    """Whether only administrators may make the change. Any role in it counts, also the present one."""
    return change.role is not None or needs_admin_to_erase(caller, user)


def needs_admin_to_erase(caller: Caller, user: User) -> bool:
    """Whether only administrators may erase the account."""
    return user.role != Role.BUYER and caller.user_id != user.id


def require_admin(caller: Caller, account: User | None) -> None:
    """Refused(`forbidden`) unless the caller is an administrator now: a token outlives a demotion by minutes.

    `account` is the account of the caller. Callers with tokens of an outside issuer have none.
    """
    if caller.role is not Role.ADMIN or (account is not None and account.role != Role.ADMIN):
        raise Refused(Problem.FORBIDDEN, "Only administrators can change roles and accounts of staff")
