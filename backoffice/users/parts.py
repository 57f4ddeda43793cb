"""Everything of this subject, put together."""

from __future__ import annotations

from collections.abc import Callable

from backoffice.auth.limits import Attempts
from backoffice.caching.cache import Cache
from backoffice.stores import Stores
from backoffice.users import routes
from backoffice.users.addresses import Addresses
from backoffice.users.administrators import Administrators
from backoffice.users.erasure import Erasures
from backoffice.users.service import UserService
from backoffice.users.store import SessionEnder, User, Users
from backoffice.users.sweeper import Sweeper


class UserParts:
    """`users` is for the login, too; `sweeper` is to run beside requests."""

    def __init__(
        self,
        stores: Stores,
        cache: Cache[User],
        sessions: SessionEnder,
        attempts: Attempts,
        *,
        repaired: Callable[[int], None],
    ) -> None:
        """Uses them, owns nothing; `repaired` is told how much the sweeper put right."""
        addresses = Addresses(stores)
        self.users = Users(stores, addresses, cache, sessions)
        erasures = Erasures(stores, self.users, addresses)
        service = UserService(self.users, Administrators(stores, self.users), erasures)
        self.sweeper = Sweeper(addresses, erasures, shards=stores.topology.shards, repaired=repaired)
        self.routes = routes.routes(routes.UserRoutes(self.users, service, attempts))
