"""Access tokens of this process, put together: keys that are followed, who mints, who verifies, who ends sessions."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Gauge

from backoffice.auth import session_routes
from backoffice.auth.sessions import Sessions
from backoffice.auth.tokens import Minter, TokenVerifier
from backoffice.stores import Stores
from runtime.process.settings import Settings
from runtime.tokens.key_watch import KeyWatch
from runtime.tokens.keys import StaffKeys, TokenKeys
from runtime.tokens.outside_tokens import OutsideTokens
from runtime.tokens.session_ends import SessionEnds

_Ring = TypeVar("_Ring", TokenKeys, StaffKeys)


class TokenParts:
    """`work` goes beside requests."""

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
        self.routes = session_routes.routes(session_routes.SessionRoutes(self.sessions))
        # A rotation waits until every process shows the new key here; names of keys, never keys.
        self._known = Gauge(
            "flashsale_backoffice_token_key_info",
            "Keys of access tokens that this process accepts; `active` is 1 for the one that it mints by.",
            ("kind", "kid", "active"),
            registry=registry,
        )
        self._watches = (buyer_keys, staff_keys)
        self._show("buyer", buyer_keys)
        self._show("staff", staff_keys)

    def work(self) -> list[Coroutine[Any, Any, None]]:
        """What runs for ever. Each as a task of its own: a group cancels its members once, which a library may swallow."""
        watches = [watch.run() for watch in self._watches]
        return [self.ends.run(), self.sessions.run(), self._outside.run(), *watches]

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
