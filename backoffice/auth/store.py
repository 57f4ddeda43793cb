"""Passwords, verified addresses and mailed tokens of accounts, in their shards. One transaction per operation.

Hashes no password and sends no mail. A request for a mail is a notice in the outbox, the same work whether the address
exists or not; the notifications worker makes the token. A user has one valid token per purpose; a newer one voids it.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from backoffice.auth.refresh import Login, begin_family, end_families
from backoffice.auth.sessions import Sessions
from backoffice.outbox.store import enqueue_notice
from backoffice.stores import Stores
from backoffice.web.messages import Refused
from domain.mailed_tokens import decode_mailed_token
from domain.notices import NoticeKind, notice_to_address, notice_to_user
from domain.problems import Problem
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "store.sql")


class CredentialStore:
    """The proofs that a user owns an account."""

    def __init__(self, stores: Stores, sessions: Sessions) -> None:
        """Uses both, owns nothing."""
        self._stores = stores
        self._sessions = sessions

    async def request_mail(self, kind: NoticeKind, email_folded: str) -> None:
        """Enqueue a notice that mails a token to the account of this address, if there is one."""
        async with self._stores.shard_of_address(email_folded).connection() as connection:
            await enqueue_notice(connection, notice_to_address(kind, email_folded))

    async def change_password(self, user_id: UUID, *, old_hash: str, new_hash: str) -> Login | None:
        """Set the password, end every login, begin a new one; None when the hash is no longer `old_hash`."""
        parameters = {"user_id": user_id, "old_hash": old_hash, "new_hash": new_hash}
        async with self._stores.shard_of_user(user_id).connection() as connection:
            row = await (await connection.execute(SQL["change_password"], parameters)).fetchone()
            if row is None:
                return None
            await connection.execute(SQL["void_resets"], {"user_id": user_id})
            generation = await self._end_everything(connection, user_id)
            login = await begin_family(connection, user_id, password_hash=new_hash)
            assert login is not None, "this transaction has just set the hash"
        await self._sessions.publish(user_id, generation)
        return login

    async def renew_hash(self, user_id: UUID, *, old_hash: str, new_hash: str) -> bool:
        """Store another hash of the same password; False when the hash is no longer `old_hash`."""
        parameters = {"user_id": user_id, "old_hash": old_hash, "new_hash": new_hash}
        async with self._stores.shard_of_user(user_id).connection() as connection:
            return await (await connection.execute(SQL["renew_hash"], parameters)).fetchone() is not None

    async def require_valid(self, kind: NoticeKind, token: str) -> UUID:
        """The user of the token, which stays unused.

        Refused(`token_invalid` or `token_expired`) unless it is valid now.
        """
        user_id, key = _token_key(kind, token)
        async with self._stores.shard_of_user(user_id).connection() as connection:
            row = await (await connection.execute(SQL["look_at_token"], key)).fetchone()
        if row is None or row[0]:
            raise Refused(Problem.TOKEN_INVALID)
        if row[1]:
            raise Refused(Problem.TOKEN_EXPIRED)
        return user_id

    async def reset_password(self, token: str, *, new_hash: str) -> str:
        """Use the token, set the password, end every login; the address of the account. Refused(`token_invalid`)."""
        user_id, key = _token_key(NoticeKind.PASSWORD_RESET, token)
        async with self._stores.shard_of_user(user_id).connection() as connection:
            email_folded = await _use(connection, "reset_password", key, new_hash=new_hash)
            generation = await self._end_everything(connection, user_id)
        await self._sessions.publish(user_id, generation)
        return email_folded

    async def verify_address(self, token: str) -> None:
        """Use the token and mark the address as verified. Refused(`token_invalid`)."""
        user_id, key = _token_key(NoticeKind.VERIFY_EMAIL, token)
        async with self._stores.shard_of_user(user_id).connection() as connection:
            await _use(connection, "verify_address", key)

    async def is_verified(self, user_id: UUID) -> bool:
        """Whether the present address of the account is verified; False without an account."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            row = await (await connection.execute(SQL["is_verified"], {"user_id": user_id})).fetchone()
        return row is not None and bool(row[0])

    async def _end_everything(self, connection: AsyncConnection[TupleRow], user_id: UUID) -> int:
        """End every login and notify the owner, since the password may be stolen. Return the generation to publish."""
        await end_families(connection, user_id)
        await enqueue_notice(connection, notice_to_user(NoticeKind.PASSWORD_CHANGED, user_id))
        return await self._sessions.note_within(connection, user_id)


async def _use(connection: AsyncConnection[TupleRow], effect: str, key: dict[str, Any], **values: str) -> str:
    """Apply the effect of a token and mark it as used; its address. Refused rolls back the caller's transaction."""
    written = await (await connection.execute(SQL[effect], {**key, **values})).fetchone()
    if written is None or await (await connection.execute(SQL["use_token"], key)).fetchone() is None:
        raise Refused(Problem.TOKEN_INVALID)
    email_folded: str = written[0]
    return email_folded


def _token_key(kind: NoticeKind, token: str) -> tuple[UUID, dict[str, Any]]:
    """The user of a token, and the parameters that select it; Refused(`token_invalid`) for a malformed token."""
    decoded = decode_mailed_token(token)
    if decoded is None:
        raise Refused(Problem.TOKEN_INVALID)
    user_id, secret_hash = decoded
    return user_id, {"user_id": user_id, "purpose": kind.value, "secret_hash": secret_hash}
