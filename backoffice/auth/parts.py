"""Composition of this subject in two steps: tokens and sessions, and then the operations, which need accounts."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

from prometheus_client import CollectorRegistry, Gauge

from backoffice.auth import routes
from backoffice.auth.first_admin import FirstAdmin
from backoffice.auth.passwords import Passwords
from backoffice.auth.refresh import RefreshTokens
from backoffice.auth.service import AuthService
from backoffice.auth.sessions import Sessions
from backoffice.auth.store import CredentialStore
from backoffice.auth.tokens import Minter, TokenVerifier
from backoffice.limits.attempts import Attempts
from backoffice.limits.known_clients import KnownClients
from backoffice.stores import Stores
from backoffice.users.administrators import Administrators
from backoffice.users.store import Users
from runtime.process.settings import Settings
from runtime.process.supervision import TaskSupervisor, Work
from runtime.tokens.key_watch import KeyWatch
from runtime.tokens.keys import StaffKeys, TokenKeys
from runtime.tokens.outside_tokens import OutsideTokens
from runtime.tokens.session_ends import SessionEnds

_Ring = TypeVar("_Ring", TokenKeys, StaffKeys)


class TokenParts:
    """Keys, the minter, the verifier and ended sessions of this process."""

    def __init__(
        self,
        settings: Settings,
        stores: Stores,
        *,
        buyer_keys: KeyWatch[TokenKeys],
        staff_keys: KeyWatch[StaffKeys],
        registry: CollectorRegistry,
    ) -> None:
        """Uses the stores, owns nothing."""
        self.ends = SessionEnds(stores.redis)
        self._outside = OutsideTokens(settings.outside_issuers, self.ends)
        self.sessions = Sessions(stores, self.ends)
        self.minter = Minter(buyer_keys, staff_keys, settings.token_issuer, settings.access_token_s)
        self.verifier = TokenVerifier(
            buyer_keys=buyer_keys,
            staff_keys=staff_keys,
            issuer=settings.token_issuer,
            ends=self.ends,
            outside=self._outside,
        )
        # A rotation waits until every process shows the new key in this metric. Labels are key ids, never keys.
        self._known = Gauge(
            "flashsale_backoffice_token_key_info",
            "Keys of access tokens that this process accepts; `active` is 1 for the key that signs new tokens.",
            ("kind", "kid", "active"),
            registry=registry,
        )
        self._watches = (buyer_keys, staff_keys)
        self._show("buyer", buyer_keys)
        self._show("staff", staff_keys)

    def work(self, background: TaskSupervisor) -> dict[str, Work]:
        """Work that runs until cancelled, by name."""
        buyer_keys, staff_keys = self._watches
        return {
            "session ends": self.ends.run,
            "sessions": partial(self.sessions.run, background),
            "outside issuers": self._outside.run,
            "buyers' keys": buyer_keys.run,
            "staff keys": staff_keys.run,
        }

    def _show(self, kind: str, watch: KeyWatch[_Ring]) -> None:
        def show(ring: _Ring) -> None:
            for old in shown:
                self._known.remove(*old)
            shown[:] = [(kind, kid, str(int(kid == ring.active))) for kid in ring.keys]
            for new in shown:
                self._known.labels(*new).set(1)

        shown: list[tuple[str, str, str]] = []
        show(watch.current)
        watch.on_change(show)


class AuthParts:
    """The operations of this subject."""

    def __init__(
        self,
        settings: Settings,
        stores: Stores,
        tokens: TokenParts,
        users: Users,
        administrators: Administrators,
        attempts: Attempts,
        known_clients: KnownClients,
    ) -> None:
        """Owns the threads that hash passwords; uses everything else. FirstAdminError for unusable settings."""
        self._passwords = Passwords()
        service = AuthService(
            users=users,
            credentials=CredentialStore(stores, tokens.sessions, users),
            refresh=RefreshTokens(stores),
            sessions=tokens.sessions,
            passwords=self._passwords,
            attempts=attempts,
            known_clients=known_clients,
            verified_only=settings.login_verified_only,
        )
        self.first_admin = FirstAdmin(settings, users=users, administrators=administrators, passwords=self._passwords)
        self.routes = routes.routes(routes.AuthRoutes(service, tokens.minter))

    def close(self) -> None:
        """Stop the threads that hash passwords."""
        self._passwords.close()
