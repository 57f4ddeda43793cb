"""Composition of this subject."""

from __future__ import annotations

from collections.abc import Callable

from backoffice.caching.cache import Cache
from backoffice.limits.attempts import Attempts
from backoffice.limits.known_clients import KnownClients
from backoffice.stores import Stores
from backoffice.users import routes
from backoffice.users.addresses import Addresses
from backoffice.users.administrators import Administrators
from backoffice.users.erasure import Erasures
from backoffice.users.model import User
from backoffice.users.service import UserService
from backoffice.users.store import SessionEnder, Users
from backoffice.users.sweeper import Sweeper


class UserParts:
    """`users` also serves the login, `administrators` the first one, `addresses` the audit log.

    `sweeper` runs beside requests.
    """

    def __init__(
        self,
        stores: Stores,
        cache: Cache[User],
        sessions: SessionEnder,
        attempts: Attempts,
        known_clients: KnownClients,
        *,
        recent_login_s: int,
        repaired: Callable[[int], None],
    ) -> None:
        """Uses its arguments, owns nothing. `repaired` receives the number of repairs of each sweep."""
        self.addresses = Addresses(stores)
        self.users = Users(stores, self.addresses, cache, sessions)
        erasures = Erasures(stores, self.users, self.addresses)
        self.administrators = Administrators(stores)
        service = UserService(
            self.users, self.administrators, erasures, attempts, known_clients, recent_login_s=recent_login_s
        )
        self.sweeper = Sweeper(self.addresses, erasures, shards=stores.topology.shards, repaired=repaired)
        self.routes = routes.routes(routes.UserRoutes(service))
