"""Changes of accounts: who may make them, on which version, and what follows. Speaks in callers and refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from backoffice.users.administrators import Administrators, LastAdministrator
from backoffice.users.erasure import Erasures
from backoffice.users.policy import needs_admin_to_change, needs_admin_to_erase, require_admin
from backoffice.users.store import Change, EmailTaken, User, Users
from backoffice.web.messages import Caller, Refused, Role
from domain.problems import Problem

_TRIES = 5  # an account that somebody else changes this often meanwhile


class UserService:
    """The operations that change accounts."""

    def __init__(self, users: Users, administrators: Administrators, erasures: Erasures) -> None:
        """Uses them, owns nothing."""
        self._users = users
        self._administrators = administrators
        self._erasures = erasures

    async def change(self, caller: Caller, user_id: UUID, change: Change, versions: list[int] | None) -> User:
        """The changed account. `versions` are those that it may have, None for any. What would change nothing does nothing."""
        for _ in range(_TRIES):
            user = await self._get(user_id)
            if needs_admin_to_change(caller, user, change):
                await self._require_admin(caller)
            _require_version(user, versions)
            if not change.differs_from(user):
                return user
            try:
                changed = await self._change(user, change, by=caller.user_id)
            except EmailTaken as error:
                raise Refused(Problem.EMAIL_TAKEN) from error
            if changed is not None:
                return changed
        raise Refused(Problem.OVERLOADED, "The account is being changed elsewhere", retry_after_s=1)

    async def erase(self, caller: Caller, user_id: UUID, versions: list[int] | None) -> None:
        """The account is gone, now or before."""
        for _ in range(_TRIES):
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
            _require_version(user, versions)
            async with self._keeping_an_admin(user):
                if await self._erasures.erase(user, by=caller.user_id):
                    return
        raise Refused(Problem.OVERLOADED, "The account is being changed elsewhere", retry_after_s=1)

    async def _change(self, user: User, change: Change, *, by: UUID) -> User | None:
        if change.role is None or change.role == user.role:
            return await self._users.change(user, change, by=by)
        async with self._keeping_an_admin(user):
            return await self._users.change(user, change, by=by)

    async def _require_admin(self, caller: Caller) -> None:
        account = await self._users.newest(caller.user_id)
        if account is None and await self._erasures.is_finished(caller.user_id) is not None:
            raise Refused(Problem.FORBIDDEN, "The account is gone")
        require_admin(caller, account)

    @asynccontextmanager
    async def _keeping_an_admin(self, user: User) -> AsyncIterator[None]:
        """Inside of this, the account may stop being an administrator's, if it is one."""
        if user.role != Role.ADMIN:
            yield
            return
        try:
            async with self._administrators.without(user.id):
                yield
        except LastAdministrator as error:
            raise Refused(Problem.FORBIDDEN, "The last administrator stays one") from error

    async def _get(self, user_id: UUID) -> User:
        user = await self._users.newest(user_id)
        if user is None:
            raise Refused(Problem.USER_NOT_FOUND)
        return user


def _require_version(user: User, versions: list[int] | None) -> None:
    if versions is not None and user.version not in versions:
        raise Refused(Problem.PRECONDITION_FAILED)
