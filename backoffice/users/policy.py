"""Permissions on accounts. Performs no I/O.

Owners change their own name and address. Staff change those of buyers, administrators those of every account. Only
administrators change roles. Staff must not change accounts of staff: a new address is enough to reset the password.
"""

from __future__ import annotations

import time

from backoffice.users.model import Change, User, fold_email
from backoffice.web.messages import STAFF, Caller, Refused, Role
from domain.problems import Problem


def needs_admin_to_change(caller: Caller, user: User, change: Change) -> bool:
    """Whether only administrators may make the change. Any role in it counts, also the present one."""
    return change.role is not None or needs_admin_to_erase(caller, user)


def needs_admin_to_erase(caller: Caller, user: User) -> bool:
    """Whether only administrators may erase the account."""
    return user.role != Role.BUYER and caller.user_id != user.id


def is_sensitive(change: Change, user: User) -> bool:
    """Whether the change needs a recent login: a thief of a token could take the account over, or raise a role."""
    moves = change.email is not None and fold_email(change.email) != fold_email(user.email)
    return moves or (change.role is not None and change.role != user.role)


def require_recent_login(caller: Caller, *, recent_s: int) -> None:
    """Refused(`forbidden`) unless the login of the token is at most `recent_s` old: the proof of the password."""
    if caller.auth_time_s is None or time.time() - caller.auth_time_s > recent_s:
        raise Refused(
            Problem.FORBIDDEN,
            f"This needs a login within the last {recent_s} seconds: log in again, and repeat the request with the new "
            "access token",
            extensions={"reason": "recent_login_required", "max_age_s": recent_s},
        )


def require_verified_staff(change: Change, user: User) -> None:
    """Refused(`forbidden`) for a new role of staff, unless the address is verified and stays."""
    raises = change.role in STAFF and change.role != user.role
    moves = change.email is not None and fold_email(change.email) != fold_email(user.email)
    if raises and (moves or not user.email_verified):
        raise Refused(
            Problem.FORBIDDEN,
            "Only accounts with a verified e-mail address can get a role of staff; the user must use the link in the mail "
            "first, or request another mail",
            extensions={"reason": "email_not_verified"},
        )


def require_admin(caller: Caller, account: User | None) -> None:
    """Refused(`forbidden`) unless the caller is an administrator now: a token outlives a demotion by minutes.

    `account` is the account of the caller. Callers with tokens of an outside issuer have none.
    """
    if caller.role is not Role.ADMIN or (account is not None and account.role != Role.ADMIN):
        raise Refused(Problem.FORBIDDEN, "Only administrators can change roles and accounts of staff")
