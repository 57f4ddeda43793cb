"""Requests and answers of this subject. Performs no I/O.

`password-reset` and `verify-email` take two forms: an address, to which a token is mailed, or that token.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, RootModel, SecretStr, model_validator

from backoffice.auth.passwords import PASSWORD_LENGTH_MAX, PASSWORD_LENGTH_MIN
from backoffice.auth.refresh import TOKEN_LENGTH as REFRESH_TOKEN_LENGTH
from backoffice.web.fields import Email, Model, Name, Resource
from domain.mailed_tokens import TOKEN_LENGTH as MAILED_TOKEN_LENGTH

# A password to compare is only bounded; a password to store must also be long enough, and hard to guess.
Password = Annotated[SecretStr, Field(max_length=PASSWORD_LENGTH_MAX)]
NewPassword = Annotated[
    SecretStr,
    Field(
        min_length=PASSWORD_LENGTH_MIN,
        max_length=PASSWORD_LENGTH_MAX,
        description="Passwords that are easy to guess are refused",
    ),
]
MailedToken = Annotated[
    SecretStr,
    Field(min_length=1, max_length=2 * MAILED_TOKEN_LENGTH, description="The token of a mail; valid once"),
]


class Registration(Model):
    """A new buyer."""

    email: Email
    password: NewPassword
    name: Name


class Credentials(Model):
    """Address and password. Both are compared and not stored, so any text within the bounds is valid."""

    email: Annotated[str, Field(max_length=254)]
    password: Password


class RefreshToken(Model):
    """A refresh token from a login or a refresh."""

    refresh_token: Annotated[SecretStr, Field(min_length=1, max_length=4 * REFRESH_TOKEN_LENGTH)]


class Tokens(Resource):
    """The tokens of a login. `expires_in` is the lifetime of the access token in seconds."""

    access_token: str
    refresh_token: str
    token_type: Literal["Bearer"] = "Bearer"
    expires_in: int


class PasswordChange(Model):
    """A new password for the caller."""

    old_password: Password
    new_password: NewPassword


class ResetRequest(Model):
    """Mail a token that resets the password and expires after 30 minutes."""

    email: Email


class ResetConfirmation(Model):
    """Set a new password with the mailed token."""

    token: MailedToken
    new_password: NewPassword


class PasswordReset(RootModel[ResetRequest | ResetConfirmation]):
    """An address, or the token that was mailed there with the new password."""

    @model_validator(mode="before")
    @classmethod
    def _pick(cls, data: Any) -> BaseModel:
        return _either(data, ResetRequest, ResetConfirmation)


class VerificationRequest(Model):
    """Mail a token that verifies the address and expires after 24 hours."""

    email: Email


class VerificationConfirmation(Model):
    """Verify the address with the mailed token."""

    token: MailedToken


class EmailVerification(RootModel[VerificationRequest | VerificationConfirmation]):
    """An address, or the token that was mailed there."""

    @model_validator(mode="before")
    @classmethod
    def _pick(cls, data: Any) -> BaseModel:
        return _either(data, VerificationRequest, VerificationConfirmation)


class EmailUndo(Model):
    """Give the account its old address back with the token that was mailed there; it expires after 7 days."""

    token: MailedToken


def _either(data: Any, request: type[BaseModel], confirmation: type[BaseModel]) -> BaseModel:
    """Validate only the form that the client means, so that errors refer to that form alone."""
    meant = confirmation if isinstance(data, dict) and "email" not in data and data else request
    return meant.model_validate(data, strict=True)
