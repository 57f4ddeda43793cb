"""Passwords, verified addresses and mailed tokens of accounts, in their shards. One transaction per operation.

Hashes no password and sends no mail. A request for a mail is a notice in the outbox, the same work whether the address
exists or not; the notifications worker makes the token. A newer token does not void an older one, so a stranger who
requests a mail takes nothing from the owner. The use of one voids the others of its purpose.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from backoffice.auth.refresh import Login, begin_family, end_families, record_own
from backoffice.auth.sessions import Sessions
from backoffice.outbox.store import enqueue_notice
from backoffice.stores import Stores
from backoffice.users.model import User, fold_email
from backoffice.users.store import Users
from backoffice.web.messages import Refused
from domain.mailed_tokens import decode_mailed_token
from domain.notices import NoticeKind, notice_to_address, notice_to_user
from domain.problems import Problem
from runtime.audit import Action, object_name, record
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "store.sql")


class CredentialStore:
    """The proofs that a user owns an account."""

    def __init__(self, stores: Stores, sessions: Sessions, users: Users) -> None:
        """Uses its arguments, owns nothing."""
        self._stores = stores
        self._sessions = sessions
        self._users = users

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
            await connection.execute(SQL["void_tokens"], _resets(user_id))
            generation = await self._end_everything(connection, user_id)
            login = await begin_family(connection, user_id, password_hash=new_hash)
            assert login is not None, "this transaction has just set the hash"
            await record(connection, Action.USER_PASSWORD_CHANGE, object_name("user", user_id))
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
        _require_good(row)
        return user_id

    async def reset_password(self, token: str, *, new_hash: str) -> str:
        """Use the token, set the password, end every login; the address of the account. Refused(`token_invalid`)."""
        user_id, key = _token_key(NoticeKind.PASSWORD_RESET, token)
        async with self._users.changing(user_id, by=user_id) as connection:
            email_folded = await _use(connection, "reset_password", key, new_hash=new_hash)
            generation = await self._end_everything(connection, user_id)
            await record_own(connection, Action.USER_PASSWORD_RESET, user_id)
        await self._sessions.publish(user_id, generation)
        return email_folded

    async def verify_address(self, token: str) -> None:
        """Use the token and mark the address as verified. Refused(`token_invalid`)."""
        user_id, key = _token_key(NoticeKind.VERIFY_EMAIL, token)
        async with self._users.changing(user_id, by=user_id) as connection:
            await _use(connection, "verify_address", key)
            await record_own(connection, Action.USER_VERIFY_EMAIL, user_id)

    async def left_address(self, token: str) -> tuple[UUID, str]:
        """The user of an undo token and the address that it gives back; Refused as `require_valid`."""
        user_id, key = _token_key(NoticeKind.EMAIL_CHANGED, token)
        async with self._stores.shard_of_user(user_id).connection() as connection:
            row = await (await connection.execute(SQL["look_at_undo"], key)).fetchone()
        return user_id, _require_good(row)[2]

    async def undo_email_change(self, user: User, email: str, token: str) -> bool:
        """Use the token, give the account the address back, lock the password, end every login.

        The owner gets a letter with a link to set a new password. False when the version of the account has changed.
        Raises EmailTaken, ClaimLapsed.
        """
        user_id, key = _token_key(NoticeKind.EMAIL_CHANGED, token)
        generation = 0

        async def together(connection: AsyncConnection[TupleRow]) -> None:
            nonlocal generation
            notice_id = await _use_token(connection, key)
            await connection.execute(SQL["void_newer_tokens"], {**key, "notice_id": notice_id})
            await connection.execute(SQL["void_tokens"], _resets(user_id))
            await connection.execute(SQL["lock_password"], {"user_id": user_id})
            await enqueue_notice(connection, notice_to_address(NoticeKind.PASSWORD_RESET, fold_email(email)))
            await end_families(connection, user_id)
            generation = await self._sessions.note_within(connection, user_id)
            await record_own(connection, Action.USER_UNDO_EMAIL, user_id)

        if not await self._users.move_back(user, email, together=together):
            return False
        await self._sessions.publish(user_id, generation)
        return True

    async def _end_everything(self, connection: AsyncConnection[TupleRow], user_id: UUID) -> int:
        """End every login and notify the owner, since the password may be stolen. Return the generation to publish."""
        await end_families(connection, user_id)
        await enqueue_notice(connection, notice_to_user(NoticeKind.PASSWORD_CHANGED, user_id))
        return await self._sessions.note_within(connection, user_id)


async def _use(connection: AsyncConnection[TupleRow], effect: str, key: dict[str, Any], **values: str) -> str:
    """Apply the effect of a token, use it, and void the others of its purpose; its address.

    Refused rolls back the caller's transaction.
    """
    written = await (await connection.execute(SQL[effect], {**key, **values})).fetchone()
    if written is None:
        raise Refused(Problem.TOKEN_INVALID)
    await _use_token(connection, key)
    await connection.execute(SQL["void_tokens"], key)
    email_folded: str = written[0]
    return email_folded


async def _use_token(connection: AsyncConnection[TupleRow], key: dict[str, Any]) -> UUID:
    """Mark a token as used; the notice of its letter. Refused(`token_invalid`) if it was used or has expired."""
    used = await (await connection.execute(SQL["use_token"], key)).fetchone()
    if used is None:
        raise Refused(Problem.TOKEN_INVALID)
    notice_id: UUID = used[0]
    return notice_id


def _require_good(row: TupleRow | None) -> TupleRow:
    """A row that begins with `used` and `expired`; Refused without one, or if one of them is true."""
    if row is None or row[0]:
        raise Refused(Problem.TOKEN_INVALID)
    if row[1]:
        raise Refused(Problem.TOKEN_EXPIRED)
    return row


def _resets(user_id: UUID) -> dict[str, Any]:
    return {"user_id": user_id, "purpose": NoticeKind.PASSWORD_RESET.value}


def _token_key(kind: NoticeKind, token: str) -> tuple[UUID, dict[str, Any]]:
    """The user of a token, and the parameters that select it; Refused(`token_invalid`) for a malformed token."""
    decoded = decode_mailed_token(token)
    if decoded is None:
        raise Refused(Problem.TOKEN_INVALID)
    user_id, secret_hash = decoded
    return user_id, {"user_id": user_id, "purpose": kind.value, "secret_hash": secret_hash}
