"""Rules of preferences and subscriptions: limits, and addresses that can be a push service."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

from backoffice.limits.attempts import PROFILE_ACCOUNT, Attempts
from backoffice.notices.documents import (
    ENDPOINT_PATTERN,
    TEST_ENDPOINT_PATTERN,
    NewSubscription,
    PreferencesChange,
)
from backoffice.notices.store import NoAccount, NoticeStore, Preferences, SubscriptionRow
from backoffice.stores import AWAY
from backoffice.web.messages import Refused, invalid
from domain.problems import Problem

_ATTEMPTS_MAX: Final = 5  # against concurrent changes of the same account


class NoticeService:
    """Every method raises Refused(`user_not_found`) for a caller without an account."""

    def __init__(self, store: NoticeStore, attempts: Attempts, *, push_key: str | None, test_services: bool) -> None:
        """`push_key` is None where no pushes are sent. `test_services`: push services may be at http:// addresses."""
        self._store = store
        self._attempts = attempts
        self._push_key = push_key
        self._test_services = test_services

    @property
    def push_key(self) -> str:
        """The public key of this installation; Refused(`not_found`) without web push."""
        if self._push_key is None:
            raise Refused(Problem.NOT_FOUND, "This installation sends no web pushes")
        return self._push_key

    async def preferences(self, user_id: UUID) -> Preferences:
        """The choices of the account."""
        async with _accounts_only():
            return await self._store.preferences(user_id)

    async def change(self, user_id: UUID, change: PreferencesChange) -> Preferences:
        """The choices after the change. A change without a difference does not write."""
        async with _accounts_only():
            for _ in range(_ATTEMPTS_MAX):
                known = await self._store.preferences(user_id)
                chosen = Preferences(
                    change.language or known.language,
                    known.email_off if change.email is None else change.email.applied_to(known.email_off),
                    known.push_off if change.push is None else change.push.applied_to(known.push_off),
                )
                if chosen == known:
                    return known
                await self._spend(user_id)
                if await self._store.put_preferences(user_id, chosen, over=known):
                    return chosen
        raise Refused(Problem.OVERLOADED, "Concurrent requests change these preferences; try again", retry_after_s=1)

    async def subscriptions(self, user_id: UUID) -> Sequence[SubscriptionRow]:
        """The subscribed browsers, oldest first."""
        async with _accounts_only():
            return await self._store.subscriptions(user_id)

    async def subscribe(self, user_id: UUID, new: NewSubscription) -> tuple[SubscriptionRow, bool]:
        """The subscription, and whether it is new."""
        assert self.push_key
        self._require_push_service(new.endpoint)
        async with _accounts_only():
            await self._spend(user_id)
            return await self._store.subscribe(
                user_id, endpoint=new.endpoint, p256dh=new.keys.point, auth=new.keys.secret
            )

    async def unsubscribe(self, user_id: UUID, endpoint: str | None) -> None:
        """Remove one subscription, or all."""
        async with _accounts_only():
            if endpoint is None or (endpoint.isascii() and endpoint.isprintable()):
                await self._store.unsubscribe(user_id, endpoint=endpoint)

    def _require_push_service(self, endpoint: str) -> None:
        """Refused unless the address may be a push service."""
        if not re.fullmatch(TEST_ENDPOINT_PATTERN if self._test_services else ENDPOINT_PATTERN, endpoint):
            raise invalid("/endpoint", "must be an https:// address of a named host, without user, port and fragment")

    async def _spend(self, user_id: UUID) -> None:
        """Each change leaves an entry in the audit log."""
        with contextlib.suppress(*AWAY):  # as names, these can change without the cache Redis
            await self._attempts.spend((PROFILE_ACCOUNT, str(user_id)))


@asynccontextmanager
async def _accounts_only() -> AsyncIterator[None]:
    try:
        yield
    except NoAccount as error:
        raise Refused(Problem.USER_NOT_FOUND) from error
