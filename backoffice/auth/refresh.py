"""Refresh tokens: they rotate in families, one family per login, and a token that is used again late ends its family.

A token is 80 bytes in base64url: user id (which determines the shard), token id, 32 random bytes. Only the hash of the
random bytes is stored. A token used again within `GRACE` gets another successor, because the first reply may have been
lost, as long as the family has fewer than `UNUSED_MAX` unused tokens. Later it counts as stolen.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import secrets
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from backoffice.stores import Stores
from backoffice.web.messages import Refused, Role
from domain import ids
from domain.problems import Problem, RatePolicy
from runtime.audit import Action, object_name, record
from runtime.postgres.sql import load_sql
from runtime.tokens.keys import LoginClaims

SQL = load_sql(__package__, "refresh.sql")
GRACE = timedelta(seconds=10)
LIFE = timedelta(days=30)
UNUSED_MAX = 20  # tokens of one family, made within GRACE: repeated use of one token must not fill the table
FAMILIES_MAX = 100  # logins of one account; beyond this number the oldest end
# Tokens kept of one family, to recognise an old token: more than one for every 15 minutes of LIFE.
TOKENS_KEPT = 4096
TRIM_EVERY = 256  # renewals on average between two trims, so that a renewal does not count rows
_POLICY = RatePolicy("renewals", UNUSED_MAX, math.ceil(GRACE.total_seconds()))
_SECRET_BYTES = 32
_TOKEN_BYTES = 16 + 16 + _SECRET_BYTES
TOKEN_LENGTH = (_TOKEN_BYTES * 4 + 2) // 3


@dataclass(frozen=True, slots=True)
class Login:
    """The result of a login or a refresh.

    `role` and the generation of `claims` are read under a lock. A change of the role and an end of the sessions wait
    for it, so they end exactly the tokens of before.
    """

    user_id: UUID
    role: Role
    claims: LoginClaims
    refresh_token: str


@dataclass(frozen=True, slots=True)
class _Found:
    """A token with its family: a row of `lock_token`."""

    family_id: UUID
    user_id: UUID
    secret_hash: bytes
    logged_in_s: int
    revoked: bool
    expired: bool
    used_long_ago: bool


class RefreshTokens:
    """Families of tokens in the shard of their user."""

    def __init__(self, stores: Stores) -> None:
        """Uses the pools of the stores; owns nothing."""
        self._stores = stores

    async def start_family(self, user_id: UUID, *, password_hash: str) -> Login | None:
        """A new login; None when the hash is no longer `password_hash`."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            login = await begin_family(connection, user_id, password_hash=password_hash)
            if login is not None:
                await record_own(connection, Action.USER_LOGIN, user_id)
            # After the lock on the account: a change of the password takes its locks in the same order.
            await connection.execute(SQL["delete_old"], {"user_id": user_id, "kept": FAMILIES_MAX})
        return login

    async def renew(self, token: str) -> Login:
        """Use a token. Refused(`token_invalid`) or Refused(`token_expired`) when it is not valid.

        Refused(`rate_limited`) when it was used before and its family has `UNUSED_MAX` unused tokens. A first use is
        never limited.
        """
        user_id, token_id, secret = _decode(token)
        async with self._stores.shard_of_user(user_id).connection() as connection:
            # Locks the account first, as every change of an account does.
            row = await (await connection.execute(SQL["lock_account"], {"user_id": user_id})).fetchone()
            cursor = connection.cursor(row_factory=class_row(_Found))
            found = await (await cursor.execute(SQL["lock_token"], {"id": token_id, "grace": GRACE})).fetchone()
            if row is None or found is None or found.user_id != user_id or not _matches(found.secret_hash, secret):
                raise Refused(Problem.TOKEN_INVALID)
            if found.revoked:
                raise Refused(Problem.TOKEN_INVALID, "The login has ended; log in again")
            if found.expired:
                raise Refused(Problem.TOKEN_EXPIRED)
            if not found.used_long_ago:
                # A statement after the lock: it counts tokens that were made during the wait.
                again = {"id": token_id, "grace": GRACE}
                (unused,) = await (await connection.execute(SQL["count_unused"], again)).fetchone() or (0,)
                if unused >= UNUSED_MAX:
                    raise Refused(
                        Problem.RATE_LIMITED,
                        "Too many refreshes of one token; wait and try again",
                        retry_after_s=_POLICY.window_s,
                        policy=_POLICY,
                    )
                next_id, next_secret = ids.new_uuid7(), secrets.token_bytes(_SECRET_BYTES)
                await connection.execute(SQL["mark_used"], {"id": token_id})
                await connection.execute(SQL["insert_token"], _row(next_id, found.family_id, next_secret))
                if secrets.randbelow(TRIM_EVERY) == 0:
                    await connection.execute(SQL["drop_old"], {"family_id": found.family_id, "kept": TOKENS_KEPT})
                claims = LoginClaims(await _generation(connection, user_id), found.logged_in_s)
                return Login(user_id, Role(row[0]), claims, _encode(user_id, next_id, next_secret))
            await connection.execute(SQL["revoke_family"], {"family_id": found.family_id})
            await record_own(connection, Action.USER_TOKEN_REUSED, user_id)
        # After the transaction: an exception inside would roll back the end of the family.
        raise Refused(Problem.TOKEN_INVALID, "The refresh token was used before, so the login has ended; log in again")

    async def end_family(self, token: str) -> None:
        """Log out. An invalid token changes nothing and is not an error."""
        try:
            user_id, token_id, secret = _decode(token)
        except Refused:
            return
        async with self._stores.shard_of_user(user_id).connection() as connection:
            cursor = connection.cursor(row_factory=class_row(_Found))
            found = await (await cursor.execute(SQL["lock_token"], {"id": token_id, "grace": GRACE})).fetchone()
            if found is not None and found.user_id == user_id and _matches(found.secret_hash, secret):
                await connection.execute(SQL["revoke_family"], {"family_id": found.family_id})
                if not found.revoked:
                    await record_own(connection, Action.USER_LOGOUT, user_id)


async def begin_family(connection: AsyncConnection[TupleRow], user_id: UUID, *, password_hash: str) -> Login | None:
    """As `start_family`, in the caller's transaction on the shard of the user."""
    family_id, token_id, secret = ids.new_uuid7(), ids.new_uuid7(), secrets.token_bytes(_SECRET_BYTES)
    family = {"family_id": family_id, "user_id": user_id, "life": LIFE, "password_hash": password_hash}
    row = await (await connection.execute(SQL["insert_family"], family)).fetchone()
    if row is None:
        return None
    await connection.execute(SQL["insert_token"], _row(token_id, family_id, secret))
    claims = LoginClaims(await _generation(connection, user_id), row[1])
    return Login(user_id, Role(row[0]), claims, _encode(user_id, token_id, secret))


async def _generation(connection: AsyncConnection[TupleRow], user_id: UUID) -> int:
    """The newest end of the user's sessions, 0 without one. The caller's transaction holds the lock on the account."""
    row = await (await connection.execute(SQL["generation"], {"user_id": user_id})).fetchone()
    return 0 if row is None else int(row[0])


async def end_families(connection: AsyncConnection[TupleRow], user_id: UUID) -> None:
    """End every login of an account, in the caller's transaction on the shard of the user."""
    await connection.execute(SQL["revoke_families"], {"user_id": user_id})


async def record_own(connection: AsyncConnection[TupleRow], action: Action, user_id: UUID) -> None:
    """Record an action of the account's owner, as a password, a refresh token or a mailed token has proved."""
    await record(connection, action, object_name("user", user_id), actor=str(user_id))


def _row(token_id: UUID, family_id: UUID, secret: bytes) -> dict[str, object]:
    return {"id": token_id, "family_id": family_id, "secret_hash": hashlib.sha256(secret).digest()}


def _matches(secret_hash: bytes, secret: bytes) -> bool:
    return hmac.compare_digest(bytes(secret_hash), hashlib.sha256(secret).digest())


def _encode(user_id: UUID, token_id: UUID, secret: bytes) -> str:
    return base64.urlsafe_b64encode(user_id.bytes + token_id.bytes + secret).rstrip(b"=").decode("ascii")


def _decode(token: str) -> tuple[UUID, UUID, bytes]:
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(Problem.TOKEN_INVALID) from error
    if len(raw) != _TOKEN_BYTES:
        raise Refused(Problem.TOKEN_INVALID)
    return UUID(bytes=raw[:16]), UUID(bytes=raw[16:32]), raw[32:]
