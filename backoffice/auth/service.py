"""Rules of registration, login, passwords, mailed tokens and sessions.

Attempts are counted before the expensive hash. Answers about an address do not reveal whether an account exists, except
at a registration, which limits attempts instead.
"""

from __future__ import annotations

from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from backoffice.auth.passwords import Passwords
from backoffice.auth.refresh import Login, RefreshTokens
from backoffice.auth.sessions import Sessions
from backoffice.auth.store import CredentialStore
from backoffice.limits.attempts import (
    CHANGE_ACCOUNT,
    LOGIN_ACCOUNT,
    LOGIN_ACCOUNT_FROM_CLIENT,
    LOGIN_CLIENT,
    MAIL_ADDRESS,
    MAIL_ADDRESS_FROM_CLIENT,
    MAIL_CLIENT,
    MAILED_TOKEN_CLIENT,
    REGISTER_CLIENT,
    Attempts,
)
from backoffice.limits.known_clients import KnownClients
from backoffice.outbox.store import enqueue_notice
from backoffice.users.model import Account, User, fold_email
from backoffice.users.store import EmailTaken, Users
from backoffice.web.messages import STAFF, Caller, Refused, Role
from domain.notices import NoticeKind, notice_to_user
from domain.problems import Problem
from runtime.audit import acting

_ATTEMPTS_MAX = 5  # against concurrent changes of the same account
_ADDRESS_TAKEN = (
    "Another account has this address now. Reset its password with a letter to this address, change its address or erase "
    "it, and use this link again"
)


class AuthService:
    """The operations; one instance a process. `client` is the address that limits count."""

    def __init__(
        self,
        *,
        users: Users,
        credentials: CredentialStore,
        refresh: RefreshTokens,
        sessions: Sessions,
        passwords: Passwords,
        attempts: Attempts,
        known_clients: KnownClients,
        verified_only: bool,
    ) -> None:
        """Owns none of its arguments. With `verified_only` buyers must verify their address before they log in."""
        self._users = users
        self._credentials = credentials
        self._refresh = refresh
        self._sessions = sessions
        self._passwords = passwords
        self._attempts = attempts
        self._known_clients = known_clients
        self._verified_only = verified_only

    async def register(self, client: str, *, email: str, name: str, password: str) -> User:
        """A buyer's account, and a notice that mails a token to verify the address. Refused(`email_taken`)."""
        await self._attempts.spend((REGISTER_CLIENT, client))
        await self._passwords.require_strong(password, pointer="/password", known=(email, name))
        password_hash = await self._passwords.hash(password)
        user = await self._users.create(
            email=email, name=name, password_hash=password_hash, role=Role.BUYER, together=_request_verification
        )
        if user is None:
            raise Refused(Problem.EMAIL_TAKEN)
        return user

    async def login(self, client: str, *, email: str, password: str) -> Login:
        """A login for the right password.

        Otherwise Refused(`credentials_invalid`), after the same work whether the address exists or not.
        """
        folded = fold_email(email)
        acting().email_folded = folded
        pair = (LOGIN_ACCOUNT_FROM_CLIENT, f"{folded} {client}")
        others = [(LOGIN_CLIENT, client)]
        # Strangers can use up the limit of an account. It does not lock out clients that have logged in before.
        if not await self._known_clients.knows(folded, client):
            others.append((LOGIN_ACCOUNT, folded))
        await self._attempts.spend(pair, *others)
        # The second round is for a password, or its hash, that changes in between.
        for _ in range(2):
            account = await self._authenticate(folded, password)
            if account is None:
                break
            password_hash = await self._renewed_hash(account, password)
            login = await self._refresh.start_family(account.id, password_hash=password_hash)
            if login is not None:
                await self._attempts.refund(others)
                await self._attempts.forget(*pair)
                await self._known_clients.remember(folded, client)
                return login
        raise Refused(Problem.CREDENTIALS_INVALID)

    async def refresh(self, token: str) -> Login:
        """New tokens for a refresh token."""
        return await self._refresh.renew(token)

    async def logout(self, token: str) -> None:
        """End the refresh tokens of the login. Its access tokens stay valid until they expire."""
        await self._refresh.end_family(token)

    async def change_password(self, user_id: UUID, *, old: str, new: str) -> Login:
        """Set the password, end every login of the account, and begin a new one."""
        limit = (CHANGE_ACCOUNT, str(user_id))
        await self._attempts.spend(limit)
        account = await self._users.account(user_id)
        if account is None:
            # A synthetic buyer, or an account that was erased while its token is valid.
            raise Refused(Problem.USER_NOT_FOUND)
        old_hash = account.password_hash
        if not await self._passwords.verify(old_hash, old):
            raise Refused(Problem.CREDENTIALS_INVALID)
        await self._passwords.require_strong(new, pointer="/new_password", known=(account.email, account.name))
        new_hash = await self._passwords.hash(new)
        login = await self._credentials.change_password(user_id, old_hash=old_hash, new_hash=new_hash)
        if login is None:
            raise Refused(Problem.CREDENTIALS_INVALID)
        await self._attempts.forget(*limit)
        return login

    async def request_mail(self, client: str, kind: NoticeKind, email: str) -> None:
        """Have a token mailed to the address, if an account has it. The work is the same for every address."""
        folded = fold_email(email)
        acting().email_folded = folded
        limits = [(MAIL_ADDRESS_FROM_CLIENT, f"{kind} {folded} {client}"), (MAIL_CLIENT, client)]
        if not await self._known_clients.knows(folded, client):
            limits.append((MAIL_ADDRESS, f"{kind} {folded}"))
        await self._attempts.spend(*limits)
        await self._credentials.request_mail(kind, folded)

    async def reset_password(self, client: str, *, token: str, new: str) -> None:
        """Set the password with a mailed token, and end every login of the account."""
        await self._attempts.spend((MAILED_TOKEN_CLIENT, client))
        # Checked before the expensive hash: an invalid token costs one read by primary key.
        user_id = await self._credentials.require_valid(NoticeKind.PASSWORD_RESET, token)
        account = await self._users.account(user_id)
        known = () if account is None else (account.email, account.name)
        await self._passwords.require_strong(new, pointer="/new_password", known=known)
        new_hash = await self._passwords.hash(new)
        email_folded = await self._credentials.reset_password(token, new_hash=new_hash)
        # The owner has probably tried several passwords before the reset, and strangers may have, too.
        await self._attempts.forget(LOGIN_ACCOUNT_FROM_CLIENT, f"{email_folded} {client}")
        await self._attempts.forget(LOGIN_ACCOUNT, email_folded)
        await self._known_clients.forget(email_folded)
        await self._known_clients.remember(email_folded, client)

    async def verify_address(self, client: str, token: str) -> None:
        """Verify the address with a mailed token."""
        await self._attempts.spend((MAILED_TOKEN_CLIENT, client))
        # Distinguishes an expired token from one that is used or unknown.
        await self._credentials.require_valid(NoticeKind.VERIFY_EMAIL, token)
        await self._credentials.verify_address(token)

    async def undo_email_change(self, client: str, token: str) -> None:
        """Give an account the address back that it has left, with a token that was mailed there.

        The change was perhaps made by a thief: every login ends, and the password is void until the owner sets another.
        """
        await self._attempts.spend((MAILED_TOKEN_CLIENT, client))
        user_id, email = await self._credentials.left_address(token)
        for _ in range(_ATTEMPTS_MAX):
            user = await self._users.newest(user_id)
            if user is None:
                raise Refused(Problem.TOKEN_INVALID)
            try:
                if await self._credentials.undo_email_change(user, email, token):
                    return
            except EmailTaken as error:
                raise Refused(Problem.EMAIL_TAKEN, _ADDRESS_TAKEN) from error
        raise Refused(Problem.OVERLOADED, "Concurrent requests change this account; try again", retry_after_s=1)

    async def end_own_sessions(self, user_id: UUID) -> None:
        """End every token of the caller, including the token of this request."""
        await self._sessions.end(user_id)

    async def end_sessions(self, caller: Caller, user_id: UUID) -> None:
        """End every token of a user, with or without an account. Only administrators may do this to staff."""
        if caller.role is not Role.ADMIN:
            user = await self._users.newest(user_id)
            if user is not None and user.role in STAFF:
                raise Refused(Problem.FORBIDDEN, "Only administrators can end the sessions of staff")
        await self._sessions.end(user_id)

    async def _authenticate(self, folded: str, password: str) -> Account | None:
        """The account with this address and password; Refused when the address must be verified first."""
        # Text that cannot be an address is hashed but not looked up: PostgreSQL rejects NUL.
        account = await self._users.find(folded) if folded.isascii() and folded.isprintable() else None
        matches = await self._passwords.verify(account.password_hash if account is not None else None, password)
        if account is None or not matches:
            return None
        # Revealed only with the right password. Addresses of staff need no verification.
        if self._verified_only and account.role == Role.BUYER and not account.email_verified:
            detail = "The e-mail address is not verified; use the link in the mail, or request another mail"
            raise Refused(Problem.FORBIDDEN, detail)
        return account

    async def _renewed_hash(self, account: Account, password: str) -> str:
        """The hash of the account, renewed when its parameters are outdated: only a login knows the password."""
        if not self._passwords.is_outdated(account.password_hash):
            return account.password_hash
        try:
            new_hash = await self._passwords.hash(password)
        except Refused:  # too many hashes at the moment; a later login renews the hash
            return account.password_hash
        renewed = await self._credentials.renew_hash(account.id, old_hash=account.password_hash, new_hash=new_hash)
        return new_hash if renewed else account.password_hash


async def _request_verification(connection: AsyncConnection[TupleRow], user_id: UUID) -> None:
    await enqueue_notice(connection, notice_to_user(NoticeKind.VERIFY_EMAIL, user_id))
