"""The administrator of a new installation, from the settings. Made only while no administrator exists."""

from __future__ import annotations

import asyncio
from typing import Final

import psycopg
import structlog
from pydantic import TypeAdapter, ValidationError

from backoffice.auth.passwords import PASSWORD_LENGTH_MAX, PASSWORD_LENGTH_MIN, Passwords
from backoffice.auth.weak_passwords import WEAK_DETAIL, is_weak
from backoffice.stores import AWAY
from backoffice.users.administrators import Administrators
from backoffice.users.store import Users
from backoffice.web.fields import Email
from backoffice.web.messages import Refused, Role
from runtime.process.backoff import Backoff
from runtime.process.errors import OperatorError
from runtime.process.settings import Settings

_EMAIL: Final[TypeAdapter[str]] = TypeAdapter(Email)
_REMEDY: Final = "correct the setting, or unset FLASHSALE_ADMIN_PASSWORD if an administrator exists"
# Errors that a repetition may get past, of servers or of migrations that still run.
_TRANSIENT = (*AWAY, psycopg.OperationalError, psycopg.ProgrammingError, psycopg.InterfaceError, Refused)

log = structlog.get_logger(__name__)


class FirstAdminError(OperatorError):
    """The settings do not give a first administrator; the message names them, without values."""


class FirstAdmin:
    """Makes the first administrator. Without FLASHSALE_ADMIN_PASSWORD it makes none."""

    def __init__(
        self, settings: Settings, *, users: Users, administrators: Administrators, passwords: Passwords
    ) -> None:
        """Raises FirstAdminError for an address or a password that an account must not have."""
        self._email = settings.admin_email
        self._password = None if settings.admin_password is None else settings.admin_password.get_secret_value()
        self._users = users
        self._administrators = administrators
        self._passwords = passwords
        if self._password is not None:
            _check(self._email, self._password)

    async def make_when_possible(self) -> None:
        """Make the administrator as soon as the servers answer. Raises FirstAdminError if no repetition can help."""
        backoff = Backoff(first_s=0.2, longest_s=5.0)
        while True:
            try:
                return await self.make()
            except _TRANSIENT as error:
                log.warning("the first administrator is not made yet", error=type(error).__name__)
                await asyncio.sleep(backoff.next_s())

    async def make(self) -> None:
        """Make the administrator unless one exists. Backoffices that start at once make one of them."""
        if self._password is None:
            return
        async with self._administrators.none_yet() as none:
            if not none:
                return
            password_hash = await self._passwords.hash(self._password)
            # The operator vouches for the address.
            user = await self._users.create(
                email=self._email,
                name="Administrator",
                password_hash=password_hash,
                role=Role.ADMIN,
                verified=True,
            )
            if user is None and await self._users.find(self._email) is not None:
                raise FirstAdminError(
                    "FLASHSALE_ADMIN_EMAIL: a buyer or staff account has this address, and no administrator exists; "
                    "set another address"
                )
        if user is None:
            raise TimeoutError("another process has claimed the address, or died while it did")
        log.info("first administrator made", user_id=str(user.id))


def _check(email: str, password: str) -> None:
    problems = []
    try:
        _EMAIL.validate_python(email)
    except ValidationError:
        problems.append("FLASHSALE_ADMIN_EMAIL: is empty or not an e-mail address")
    if not PASSWORD_LENGTH_MIN <= len(password) <= PASSWORD_LENGTH_MAX:
        problems.append(
            f"FLASHSALE_ADMIN_PASSWORD: must have {PASSWORD_LENGTH_MIN} to {PASSWORD_LENGTH_MAX} characters"
        )
    elif is_weak(password, (email,)):
        problems.append(f"FLASHSALE_ADMIN_PASSWORD: {WEAK_DETAIL}")
    if problems:
        raise FirstAdminError("; ".join([*problems, _REMEDY]))
