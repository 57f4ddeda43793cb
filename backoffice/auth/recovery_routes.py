"""Change the password, reset a forgotten one, verify an address.

`password-reset` and `verify-email` take either an address, and a mail with a token goes there, or that token. What is said
about an address is the same whether anybody has it: asking is writing one row, in either case.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, RootModel, SecretStr, model_validator

from backoffice.auth.limits import (
    CHANGE_ACCOUNT,
    LOGIN_ACCOUNT_FROM_CLIENT,
    MAIL_ADDRESS,
    MAIL_ADDRESS_FROM_CLIENT,
    MAIL_CLIENT,
    MAILED_TOKEN_CLIENT,
    Attempts,
)
from backoffice.auth.passwords import Passwords
from backoffice.auth.recovery import Recovery
from backoffice.auth.routes import NewPassword, Password
from backoffice.auth.tokens import Minter, Tokens
from backoffice.users.store import fold_email
from backoffice.web.fields import Email, Model
from backoffice.web.messages import EVERYONE, Answer, Call, Refused
from backoffice.web.routing import Route
from domain.mailed_tokens import TOKEN_LENGTH
from domain.notices import NoticeKind
from domain.problems import Problem

MailedToken = Annotated[
    SecretStr, Field(min_length=1, max_length=2 * TOKEN_LENGTH, description="The token of the newest mail; good once")
]


class PasswordChange(Model):
    """Who is logged in sets another password."""

    old_password: Password
    new_password: NewPassword


class ResetRequest(Model):
    """Mail a token that resets the password, good for 30 minutes."""

    email: Email


class ResetConfirmation(Model):
    """Set another password with the mailed token."""

    token: MailedToken
    new_password: NewPassword


class PasswordReset(RootModel[ResetRequest | ResetConfirmation]):
    """An address, or the token that was mailed there with the new password."""

    @model_validator(mode="before")
    @classmethod
    def _pick(cls, data: Any) -> BaseModel:
        return _either(data, ResetRequest, ResetConfirmation)


class VerificationRequest(Model):
    """Mail a token that proves the address, good for 24 hours."""

    email: Email


class VerificationConfirmation(Model):
    """Prove the address with the mailed token."""

    token: MailedToken


class EmailVerification(RootModel[VerificationRequest | VerificationConfirmation]):
    """An address, or the token that was mailed there."""

    @model_validator(mode="before")
    @classmethod
    def _pick(cls, data: Any) -> BaseModel:
        return _either(data, VerificationRequest, VerificationConfirmation)


def _either(data: Any, request: type[BaseModel], confirmation: type[BaseModel]) -> BaseModel:
    """The one that is meant, so that a mistake is told about that one, and not about both."""
    meant = confirmation if isinstance(data, dict) and "email" not in data and data else request
    return meant.model_validate(data, strict=True)


class RecoveryRoutes:
    """The operations; one instance a process."""

    def __init__(self, *, recovery: Recovery, passwords: Passwords, attempts: Attempts, minter: Minter) -> None:
        """Everything is passed in and owned elsewhere."""
        self._recovery = recovery
        self._passwords = passwords
        self._attempts = attempts
        self._minter = minter

    async def change(self, call: Call, body: PasswordChange) -> Answer:
        """Every login of the account ends, and the caller gets the tokens of a new one."""
        user_id = call.who.user_id
        limit = (CHANGE_ACCOUNT, str(user_id))
        await self._attempts.spend(limit)
        old_hash = await self._recovery.password_hash(user_id)
        if old_hash is None:
            # A synthetic buyer, or an account that was removed while its token lives.
            raise Refused(Problem.USER_NOT_FOUND)
        if not await self._passwords.verify(old_hash, body.old_password.get_secret_value()):
            raise Refused(Problem.CREDENTIALS_INVALID)
        new_hash = await self._passwords.hash(body.new_password.get_secret_value())
        login = await self._recovery.change_password(user_id, old_hash=old_hash, new_hash=new_hash)
        if login is None:
            raise Refused(Problem.CREDENTIALS_INVALID)
        await self._attempts.forget(*limit)
        return Answer(200, self._minter.tokens(login))

    async def reset(self, call: Call, body: PasswordReset) -> Answer:
        """Ask for a token, or use it: the password is set and every login ends."""
        asked = body.root
        if isinstance(asked, ResetRequest):
            return await self._ask(call, NoticeKind.PASSWORD_RESET, asked.email)
        await self._attempts.spend((MAILED_TOKEN_CLIENT, call.client))
        token = asked.token.get_secret_value()
        # Before the hash, which is dear: rubbish costs a look at a primary key.
        await self._recovery.require_open(NoticeKind.PASSWORD_RESET, token)
        new_hash = await self._passwords.hash(asked.new_password.get_secret_value())
        email_folded = await self._recovery.reset_password(token, new_hash=new_hash)
        # Whoever forgot the password has probably guessed at it a few times.
        await self._attempts.forget(LOGIN_ACCOUNT_FROM_CLIENT, f"{email_folded} {call.client}")
        return Answer(204)

    async def verify(self, call: Call, body: EmailVerification) -> Answer:
        """Ask for a token, or use it: the address counts as verified."""
        asked = body.root
        if isinstance(asked, VerificationRequest):
            return await self._ask(call, NoticeKind.VERIFY_EMAIL, asked.email)
        await self._attempts.spend((MAILED_TOKEN_CLIENT, call.client))
        token = asked.token.get_secret_value()
        # For the reason: used and unknown are told apart from expired.
        await self._recovery.require_open(NoticeKind.VERIFY_EMAIL, token)
        await self._recovery.verify_address(token)
        return Answer(204)

    async def _ask(self, call: Call, kind: NoticeKind, email: str) -> Answer:
        folded = fold_email(email)
        await self._attempts.spend(
            (MAIL_ADDRESS_FROM_CLIENT, f"{kind} {folded} {call.client}"),
            (MAIL_ADDRESS, f"{kind} {folded}"),
            (MAIL_CLIENT, call.client),
        )
        await self._recovery.ask_for_mail(kind, folded)
        return Answer(204)


def routes(recovery: RecoveryRoutes) -> tuple[Route, ...]:
    """Operations of this part of the subject."""
    token = (Problem.TOKEN_INVALID, Problem.TOKEN_EXPIRED, Problem.RATE_LIMITED)
    return (
        Route(
            "POST",
            "/v1/auth/password",
            recovery.change,
            "Change the password; ends every login and answers a new one",
            "auth",
            roles=EVERYONE,
            body=PasswordChange,
            answers=Tokens,
            problems=(Problem.CREDENTIALS_INVALID, Problem.USER_NOT_FOUND, Problem.RATE_LIMITED),
        ),
        Route(
            "POST",
            "/v1/auth/password-reset",
            recovery.reset,
            "Have a token mailed that resets the password, or reset it with the token",
            "auth",
            body=PasswordReset,
            status=204,
            problems=token,
        ),
        Route(
            "POST",
            "/v1/auth/verify-email",
            recovery.verify,
            "Have a token mailed that proves the address, or prove it with the token",
            "auth",
            body=EmailVerification,
            status=204,
            problems=token,
        ),
    )
