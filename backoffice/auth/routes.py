"""Register, log in, refresh, log out; passwords, addresses, sessions; the public keys of staff tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import orjson

from backoffice.auth.documents import (
    Credentials,
    EmailUndo,
    EmailVerification,
    PasswordChange,
    PasswordReset,
    RefreshToken,
    Registration,
    ResetRequest,
    Tokens,
    VerificationRequest,
)
from backoffice.auth.service import AuthService
from backoffice.auth.tokens import Minter
from backoffice.users.documents import UserView, view
from backoffice.web.messages import EVERYONE, STAFF, Answer, Call
from backoffice.web.routing import Route
from domain.notices import NoticeKind
from domain.problems import Problem
from runtime.audit import Action
from runtime.tokens.keys import staff_jwks

BODY_BYTES_MAX: Final = 8 * 1024  # an address, a name and two passwords, each character escaped


class AuthRoutes:
    """The operations."""

    def __init__(self, service: AuthService, minter: Minter) -> None:
        """Uses both, owns nothing."""
        self._service = service
        self._minter = minter

    async def register(self, call: Call, body: Registration) -> Answer:
        """Make a buyer's account."""
        password = body.password.get_secret_value()
        user = await self._service.register(call.client, email=body.email, name=body.name, password=password)
        return Answer(201, view(user))

    async def login(self, call: Call, body: Credentials) -> Answer:
        """Tokens for address and password."""
        password = body.password.get_secret_value()
        login = await self._service.login(call.client, email=body.email, password=password)
        return Answer(200, self._minter.tokens(login))

    async def refresh(self, _: Call, body: RefreshToken) -> Answer:
        """Tokens for a refresh token."""
        return Answer(200, self._minter.tokens(await self._service.refresh(body.refresh_token.get_secret_value())))

    async def logout(self, _: Call, body: RefreshToken) -> Answer:
        """End the login of a refresh token."""
        await self._service.logout(body.refresh_token.get_secret_value())
        return Answer(204)

    async def jwks(self, _: Call) -> Answer:
        """The keys that verify staff tokens (RFC 7517)."""
        document = orjson.dumps(staff_jwks(*self._minter.staff_keys.current.keys.values()))
        return Answer(
            body=document, headers={"cache-control": "public, max-age=300"}, media_type="application/jwk-set+json"
        )

    async def change_password(self, call: Call, body: PasswordChange) -> Answer:
        """Set a new password; tokens of the new login."""
        login = await self._service.change_password(
            call.who.user_id, old=body.old_password.get_secret_value(), new=body.new_password.get_secret_value()
        )
        return Answer(200, self._minter.tokens(login))

    async def reset_password(self, call: Call, body: PasswordReset) -> Answer:
        """Request a token, or use it."""
        form = body.root
        if isinstance(form, ResetRequest):
            await self._service.request_mail(call.client, NoticeKind.PASSWORD_RESET, form.email)
        else:
            token, new = form.token.get_secret_value(), form.new_password.get_secret_value()
            await self._service.reset_password(call.client, token=token, new=new)
        return Answer(204)

    async def verify_address(self, call: Call, body: EmailVerification) -> Answer:
        """Request a token, or use it."""
        form = body.root
        if isinstance(form, VerificationRequest):
            await self._service.request_mail(call.client, NoticeKind.VERIFY_EMAIL, form.email)
        else:
            await self._service.verify_address(call.client, form.token.get_secret_value())
        return Answer(204)

    async def undo_email_change(self, call: Call, body: EmailUndo) -> Answer:
        """Give an account its old address back."""
        await self._service.undo_email_change(call.client, body.token.get_secret_value())
        return Answer(204)

    async def end_own_sessions(self, call: Call) -> Answer:
        """End every token of the caller."""
        await self._service.end_own_sessions(call.who.user_id)
        return Answer(204)

    async def end_sessions(self, call: Call) -> Answer:
        """End every token of a user."""
        await self._service.end_sessions(call.who, call.path_id("user_id", Problem.USER_NOT_FOUND))
        return Answer(204)


def routes(auth: AuthRoutes) -> tuple[Route, ...]:
    """Operations of this subject."""
    limited = (Problem.RATE_LIMITED, Problem.OVERLOADED)
    token = (Problem.TOKEN_INVALID, Problem.TOKEN_EXPIRED, Problem.RATE_LIMITED)
    # Most of these read a body from anyone.
    return tuple(replace(route, body_bytes_max=BODY_BYTES_MAX) for route in _routes(auth, limited, token))


def _routes(auth: AuthRoutes, limited: tuple[Problem, ...], token: tuple[Problem, ...]) -> tuple[Route, ...]:
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
            action=Action.USER_REGISTER,
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
            action=Action.USER_LOGIN,
        ),
        Route(
            "POST",
            "/v1/auth/refresh",
            auth.refresh,
            "Exchange a refresh token for new tokens",
            "auth",
            body=RefreshToken,
            answers=Tokens,
            problems=token,
            action=Action.USER_REFRESH,
        ),
        Route(
            "POST",
            "/v1/auth/logout",
            auth.logout,
            "End a login",
            "auth",
            body=RefreshToken,
            status=204,
            action=Action.USER_LOGOUT,
        ),
        Route(
            "GET",
            "/.well-known/jwks.json",
            auth.jwks,
            "Public keys of staff tokens",
            "auth",
            media_type="application/jwk-set+json",
        ),
        Route(
            "POST",
            "/v1/auth/password",
            auth.change_password,
            "Change the password; ends every login and returns the tokens of a new one",
            "auth",
            roles=EVERYONE,
            body=PasswordChange,
            answers=Tokens,
            problems=(Problem.CREDENTIALS_INVALID, Problem.USER_NOT_FOUND, Problem.RATE_LIMITED),
            action=Action.USER_PASSWORD_CHANGE,
        ),
        Route(
            "POST",
            "/v1/auth/password-reset",
            auth.reset_password,
            "Request a mail with a token that resets the password, or reset the password with the token",
            "auth",
            body=PasswordReset,
            status=204,
            problems=token,
            action=Action.USER_PASSWORD_RESET,
        ),
        Route(
            "POST",
            "/v1/auth/verify-email",
            auth.verify_address,
            "Request a mail with a token that verifies the address, or verify the address with the token",
            "auth",
            body=EmailVerification,
            status=204,
            problems=token,
            action=Action.USER_VERIFY_EMAIL,
        ),
        Route(
            "POST",
            "/v1/auth/undo-email-change",
            auth.undo_email_change,
            "Undo a change of the e-mail address with the token that was mailed to the old address; ends every login and "
            "voids the password, and a mail with a token to set another one follows",
            "auth",
            body=EmailUndo,
            status=204,
            problems=(*token, Problem.EMAIL_TAKEN),
            action=Action.USER_UNDO_EMAIL,
        ),
        Route(
            "POST",
            "/v1/auth/logout-everywhere",
            auth.end_own_sessions,
            "End all sessions of the caller; access tokens end at once",
            "auth",
            roles=EVERYONE,
            status=204,
            action=Action.USER_END_SESSIONS,
        ),
        Route(
            "POST",
            "/v1/users/{user_id}/logout",
            auth.end_sessions,
            "End all sessions of a user; access tokens end at once",
            "auth",
            roles=STAFF,
            status=204,
            problems=(Problem.USER_NOT_FOUND,),
            action=Action.USER_END_SESSIONS,
        ),
    )
