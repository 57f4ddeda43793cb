"""Rules of accounts: permissions, versions, limits, and the last administrator."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from backoffice.limits.attempts import ADDRESS_ACCOUNT, MAIL_ADDRESS, MAIL_CLIENT, PROFILE_ACCOUNT, Attempts
from backoffice.limits.known_clients import KnownClients
from backoffice.stores import AWAY
from backoffice.users.administrators import Administrators, LastAdministrator
from backoffice.users.erasure import Erasures
from backoffice.users.model import Change, User, fold_email
from backoffice.users.policy import (
    is_sensitive,
    needs_admin_to_change,
    needs_admin_to_erase,
    require_admin,
    require_recent_login,
    require_verified_staff,
)
from backoffice.users.store import EmailTaken, Users
from backoffice.web.messages import Caller, Refused, Role
from domain.problems import Problem

_ATTEMPTS_MAX = 5  # against concurrent changes of the same account
_CONTENDED = "Concurrent requests change this account; try again"


class UserService:
    """Reads and changes of accounts. `versions` are the versions that `If-Match` allows, None for any."""

    def __init__(
        self,
        users: Users,
        administrators: Administrators,
        erasures: Erasures,
        attempts: Attempts,
        known_clients: KnownClients,
        *,
        recent_login_s: int,
    ) -> None:
        """Uses its arguments, owns nothing. Sensitive changes need a login of at most `recent_login_s` ago."""
        self._recent_login_s = recent_login_s
        self._users = users
        self._administrators = administrators
        self._erasures = erasures
        self._attempts = attempts
        self._known_clients = known_clients

    async def get(self, user_id: UUID) -> User:
        """The account; Refused(`user_not_found`)."""
        return _found(await self._users.get(user_id))

    async def page(
        self, *, email: str | None, role: Role | None, before: UUID | None, limit: int, reader: UUID
    ) -> list[User]:
        """Accounts of all shards, newest first; with `email` at most one."""
        if email is None:
            return await self._users.page(role=role, before=before, limit=limit, reader=reader)
        # Text that cannot be an address is not looked up: PostgreSQL rejects NUL.
        user = await self._users.find(email) if email.isascii() and email.isprintable() else None
        if user is None or role not in (None, user.role) or (before is not None and user.id >= before):
            return []
        return [user]

    async def change_own(self, caller: Caller, client: str, change: Change, versions: list[int] | None) -> User:
        """As `change`, for the caller's own account.

        Changes are limited: each leaves an entry in the audit log. One of the address also reveals whether the new
        address is in use, and sends a mail.
        """
        user = await self._users.get(caller.user_id)
        if user is not None and change.differs_from(user):
            if change.email is not None and fold_email(user.email) != fold_email(change.email):
                require_recent_login(caller, recent_s=self._recent_login_s)
                await self._attempts.spend(
                    (ADDRESS_ACCOUNT, str(caller.user_id)),
                    (MAIL_ADDRESS, fold_email(change.email)),
                    (MAIL_CLIENT, client),
                )
            with contextlib.suppress(*AWAY):  # names can change without the cache Redis
                await self._attempts.spend((PROFILE_ACCOUNT, str(caller.user_id)))
        return await self.change(caller, caller.user_id, change, versions)

    async def change(self, caller: Caller, user_id: UUID, change: Change, versions: list[int] | None) -> User:
        """The changed account. A change without a difference does not write."""
        for _ in range(_ATTEMPTS_MAX):
            user = _found(await self._users.newest(user_id))
            if needs_admin_to_change(caller, user, change):
                await self._require_admin(caller)
            if is_sensitive(change, user):
                require_recent_login(caller, recent_s=self._recent_login_s)
            _require_version(user, versions)
            require_verified_staff(change, user)
            if not change.differs_from(user):
                return user
            try:
                changed = await self._change(user, change, by=caller.user_id)
            except EmailTaken as error:
                raise Refused(Problem.EMAIL_TAKEN) from error
            if changed is not None:
                return changed
        raise Refused(Problem.OVERLOADED, _CONTENDED, retry_after_s=1)

    async def erase(self, caller: Caller, user_id: UUID, versions: list[int] | None) -> None:
        """Erase the account. Repeating finishes an interrupted erasure."""
        for _ in range(_ATTEMPTS_MAX):
            user = await self._users.newest(user_id)
            if user is None:
                finished = await self._erasures.is_finished(user_id)
                if finished is None:
                    raise Refused(Problem.USER_NOT_FOUND)
                if not finished:
                    await self._erasures.finish_soon(user_id)
                return
            if needs_admin_to_erase(caller, user):
                await self._require_admin(caller)
            require_recent_login(caller, recent_s=self._recent_login_s)
            _require_version(user, versions)
            async with self._keeping_an_admin(user):
                if not await self._erasures.erase(user, by=caller.user_id):
                    continue
            with contextlib.suppress(*AWAY):  # otherwise the list ends by its time
                await self._known_clients.forget(fold_email(user.email))
            return
        raise Refused(Problem.OVERLOADED, _CONTENDED, retry_after_s=1)

    async def _change(self, user: User, change: Change, *, by: UUID) -> User | None:
        if change.role is None or change.role == user.role:
            return await self._users.change(user, change, by=by)
        async with self._keeping_an_admin(user):
            return await self._users.change(user, change, by=by)

    async def _require_admin(self, caller: Caller) -> None:
        account = await self._users.newest(caller.user_id)
        if account is None and await self._erasures.is_finished(caller.user_id) is not None:
            raise Refused(Problem.FORBIDDEN, "The caller's own account was erased")
        require_admin(caller, account)

    @asynccontextmanager
    async def _keeping_an_admin(self, user: User) -> AsyncIterator[None]:
        """While this is open, the account may cease to be an administrator; Refused for the last one."""
        if user.role != Role.ADMIN:
            yield
            return
        try:
            async with self._administrators.without(user.id):
                yield
        except LastAdministrator as error:
            detail = "This is the last administrator; make another one first"
            raise Refused(Problem.FORBIDDEN, detail) from error


def _found(user: User | None) -> User:
    if user is None:
        raise Refused(Problem.USER_NOT_FOUND)
    return user


def _require_version(user: User, versions: list[int] | None) -> None:
    if versions is not None and user.version not in versions:
        raise Refused(Problem.PRECONDITION_FAILED)
