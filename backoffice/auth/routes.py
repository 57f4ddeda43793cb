"""Register, log in, stay logged in, log out; the public keys of staff tokens."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import orjson
import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from pydantic import Field, SecretStr

from backoffice.auth import outbox
from backoffice.auth.limits import (
    LOGIN_ACCOUNT,
    LOGIN_ACCOUNT_FROM_CLIENT,
    LOGIN_CLIENT,
    REGISTER_CLIENT,
    Attempts,
)
from backoffice.auth.passwords import Passwords
from backoffice.auth.recovery import Recovery
from backoffice.auth.refresh import TOKEN_LENGTH, RefreshTokens
from backoffice.auth.tokens import Minter, Tokens
from backoffice.users.routes import UserView, view
from backoffice.users.store import Account, Users, fold_email
from backoffice.web.fields import Email, Model, Name
from backoffice.web.messages import Answer, Call, Refused, Role
from backoffice.web.routing import Route
from domain.notices import NoticeKind, notice_to_user
from domain.problems import Problem
from runtime.tokens.keys import staff_jwks

log = structlog.get_logger(__name__)

# What is compared is only bounded, what is to be stored must be worth it.
Password = Annotated[SecretStr, Field(max_length=256)]
NewPassword = Annotated[SecretStr, Field(min_length=8, max_length=256)]


class Registration(Model):
    """A new buyer."""

    email: Email
    password: NewPassword
    name: Name


class Credentials(Model):
    """Address and password; nothing is said about their shape, since they are compared, not stored."""

    email: Annotated[str, Field(max_length=254)]
    password: Password


class RefreshToken(Model):
    """A refresh token as it was given out."""

    refresh_token: Annotated[SecretStr, Field(min_length=1, max_length=4 * TOKEN_LENGTH)]


class Auth:
    """The operations; one instance a process."""

    def __init__(
        self,
        *,
        users: Users,
        refresh: RefreshTokens,
        recovery: Recovery,
        passwords: Passwords,
        attempts: Attempts,
        minter: Minter,
        verified_only: bool,
    ) -> None:
        """Everything is passed in and owned elsewhere. With `verified_only` buyers prove their address before they log in."""
        self._users = users
        self._refresh = refresh
        self._recovery = recovery
        self._verified_only = verified_only
        self._passwords = passwords
        self._attempts = attempts
        self._minter = minter

    async def register(self, call: Call, body: Registration) -> Answer:
        """A buyer's account, and a mail with a token that proves its address.

        That an address is in use cannot be hidden here: the number of tries is limited.
        """
        await self._attempts.spend((REGISTER_CLIENT, call.client))
        password_hash = await self._passwords.hash(body.password.get_secret_value())
        user = await self._users.create(
            email=body.email, name=body.name, password_hash=password_hash, role=Role.BUYER, together=_ask_to_verify
        )
        if user is None:
            raise Refused(Problem.EMAIL_TAKEN)
        return Answer(201, view(user))

    async def login(self, call: Call, body: Credentials) -> Answer:
        """Tokens for the right password; else one answer, after the same work, whether the address exists or not."""
        folded = fold_email(body.email)
        subjects = (
            (LOGIN_ACCOUNT_FROM_CLIENT, f"{folded} {call.client}"),
            (LOGIN_ACCOUNT, folded),
            (LOGIN_CLIENT, call.client),
        )
        await self._attempts.spend(*subjects)
        password = body.password.get_secret_value()
        # The second time for a password, or its hash, that is changed in between.
        for _ in range(2):
            user = await self._whose(folded, password)
            if user is None:
                raise Refused(Problem.CREDENTIALS_INVALID)
            login = await self._refresh.start_family(user.id, password_hash=await self._renewed_hash(user, password))
            if login is not None:
                break
        else:
            raise Refused(Problem.CREDENTIALS_INVALID)
        await self._attempts.refund(subjects[1:])
        await self._attempts.forget(*subjects[0])
        return Answer(200, self._minter.tokens(login))

    async def _whose(self, folded: str, password: str) -> Account | None:
        """The account with this address and password; Refused when it must prove its address first."""
        # What cannot be an address is nobody's: not asked for, since PostgreSQL refuses NUL, but hashed like any other.
        user = await self._users.find(folded) if folded.isascii() and folded.isprintable() else None
        matches = await self._passwords.verify(user.password_hash if user is not None else None, password)
        if user is None or not matches:
            return None
        # Only who knows the password is told; staff are made by who knows them.
        if self._verified_only and user.role == Role.BUYER and not await self._recovery.is_verified(user.id):
            raise Refused(Problem.FORBIDDEN, "The address is not verified yet: use the token that was mailed to it")
        return user

    async def _renewed_hash(self, user: Account, password: str) -> str:
        """The account's hash, made anew when the parameters have changed since: only a login has the password."""
        if not self._passwords.is_outdated(user.password_hash):
            return user.password_hash
        try:
            new_hash = await self._passwords.hash(password)
        except Refused:  # no room for a second hash now: at another login
            return user.password_hash
        renewed = await self._recovery.renew_hash(user.id, old_hash=user.password_hash, new_hash=new_hash)
        return new_hash if renewed else user.password_hash

    async def refresh(self, _: Call, body: RefreshToken) -> Answer:
        """New tokens for a refresh token."""
        return Answer(200, self._minter.tokens(await self._refresh.renew(body.refresh_token.get_secret_value())))

    async def logout(self, _: Call, body: RefreshToken) -> Answer:
        """The login's refresh tokens end; access tokens live out their minutes."""
        await self._refresh.end_family(body.refresh_token.get_secret_value())
        return Answer(204)

    async def jwks(self, _: Call) -> Answer:
        """The keys that verify staff tokens (RFC 7517)."""
        document = orjson.dumps(staff_jwks(*self._minter.staff_keys.current.keys.values()))
        return Answer(
            body=document, headers={"cache-control": "public, max-age=300"}, media_type="application/jwk-set+json"
        )

    async def make_first_admin(self, email: str, password: SecretStr) -> None:
        """The administrator of a new installation. An existing account with this address is left as it is."""
        if await self._users.find(email) is not None:
            return
        password_hash = await self._passwords.hash(password.get_secret_value())
        user = await self._users.create(email=email, name="Administrator", password_hash=password_hash, role=Role.ADMIN)
        if user is not None:
            log.info("first administrator made", user_id=str(user.id))


async def _ask_to_verify(connection: AsyncConnection[TupleRow], user_id: UUID) -> None:
    await outbox.leave(connection, notice_to_user(NoticeKind.VERIFY_EMAIL, user_id))


def routes(auth: Auth) -> tuple[Route, ...]:
    """Operations of this subject."""
    limited = (Problem.RATE_LIMITED, Problem.OVERLOADED)
    return (
        Route(
            "POST",
            "/v1/auth/register",
            auth.register,
            "Make a buyer's account",
            "auth",
            body=Registration,
            answers=UserView,
            status=201,
            problems=(Problem.EMAIL_TAKEN, *limited),
        ),
        Route(
            "POST",
            "/v1/auth/login",
            auth.login,
            "Log in",
            "auth",
            body=Credentials,
            answers=Tokens,
            problems=(Problem.CREDENTIALS_INVALID, Problem.FORBIDDEN, *limited),
        ),
        Route(
            "POST",
            "/v1/auth/refresh",
            auth.refresh,
            "Exchange a refresh token for new tokens",
            "auth",
            body=RefreshToken,
            answers=Tokens,
            problems=(Problem.TOKEN_INVALID, Problem.TOKEN_EXPIRED, Problem.RATE_LIMITED),
        ),
        Route("POST", "/v1/auth/logout", auth.logout, "End a login", "auth", body=RefreshToken, status=204),
        Route(
            "GET",
            "/.well-known/jwks.json",
            auth.jwks,
            "Public keys of staff tokens",
            "auth",
            media_type="application/jwk-set+json",
        ),
    )
