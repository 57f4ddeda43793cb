"""Webhooks over HTTP, for staff: handlers and route table."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from uuid import UUID

from pydantic import BaseModel, SecretStr

from backoffice.web.fields import Page, decode_cursor, encode_cursor
from backoffice.web.idempotency import idempotency_key
from backoffice.web.messages import STAFF, Answer, Call, Refused, invalid
from backoffice.web.routing import Handler, Route
from backoffice.webhooks.documents import (
    DeliveryList,
    DeliveryPage,
    DeliveryView,
    WebhookCreated,
    WebhookInput,
    WebhookList,
    WebhookSecret,
    WebhookView,
    check_url,
    delivery_view,
    webhook_members,
)
from backoffice.webhooks.store import NewWebhook, TooManyWebhooks, WebhookStore
from domain.problems import Problem
from domain.webhooks import WEBHOOKS_MAX, encode_secret, secret_of
from runtime.audit import Action
from runtime.outbound.addresses import Network

_KIND = "webhooks"
_LOG_KIND = "deliveries"
_MISSING = "The webhook does not exist"
_MISSING_DELIVERY = "The delivery does not exist, or has left the log"
_OFF = "There are no outgoing webhooks here: FLASHSALE_WEBHOOK_KEY is not set. Ask an operator to set it"


class WebhookRoutes:
    """The handlers."""

    def __init__(
        self,
        store: WebhookStore,
        *,
        key: SecretStr | None,
        allowed: Sequence[Network],
    ) -> None:
        """`key` is the installation's, from which secrets follow; `allowed` are networks that need not be public."""
        self._store = store
        self._key = key
        self._allowed = allowed

    async def create(self, call: Call, body: WebhookInput) -> Answer:
        """Create a webhook; with an Idempotency-Key once per key and caller. Only this answer shows the secret."""
        check_url(body.url, self._allowed)
        key = idempotency_key(call)
        new = NewWebhook(
            url=body.url,
            description=body.description,
            event_types=body.event_types,
            created_by=call.who.user_id,
            idempotency_key=key,
            fingerprint=None if key is None else hashlib.sha256(body.model_dump_json().encode()).digest(),
        )
        self._required_key()
        try:
            webhook, replayed = await self._store.create(new)
        except TooManyWebhooks as error:
            raise invalid("", f"there are {WEBHOOKS_MAX} webhooks; delete one first") from error
        headers = {"location": f"/v1/webhooks/{webhook.id}"}
        if replayed:
            headers["idempotency-replayed"] = "true"
        secret = self._secret(webhook.id, webhook.salt)
        return Answer(201, WebhookCreated(**webhook_members(webhook), secret=secret), headers)

    async def page(self, _: Call, query: Page) -> Answer:
        """Webhooks, newest first, without their secrets."""
        found = await self._store.page(before=decode_cursor(_KIND, query.cursor), limit=query.limit + 1)
        shown = found[: query.limit]
        items = [WebhookView(**webhook_members(webhook)) for webhook in shown]
        next_cursor = encode_cursor(_KIND, shown[-1].id) if len(found) > query.limit else None
        return Answer(body=WebhookList(items=items, next_cursor=next_cursor))

    async def get(self, call: Call) -> Answer:
        """One webhook, without its secret."""
        webhook = await self._store.get(_webhook_id(call))
        if webhook is None:
            raise Refused(Problem.NOT_FOUND, _MISSING)
        return Answer(body=WebhookView(**webhook_members(webhook)))

    async def delete(self, call: Call) -> Answer:
        """Delete it with its deliveries; those that wait are not sent."""
        if not await self._store.delete(_webhook_id(call)):
            raise Refused(Problem.NOT_FOUND, _MISSING)
        return Answer(204)

    async def enable(self, call: Call) -> Answer:
        """Deliver events from now on, and those that waited when it was disabled. Repeating it changes nothing."""
        return await self._switch(call, enabled=True)

    async def disable(self, call: Call) -> Answer:
        """Send nothing from now on. Repeating it changes nothing."""
        return await self._switch(call, enabled=False)

    async def _switch(self, call: Call, *, enabled: bool) -> Answer:
        webhook = await self._store.switch(_webhook_id(call), enabled=enabled, by=call.who.user_id)
        if webhook is None:
            raise Refused(Problem.NOT_FOUND, _MISSING)
        return Answer(body=WebhookView(**webhook_members(webhook)))

    async def rotate(self, call: Call) -> Answer:
        """Make a new secret. For 24 h each delivery has a signature of the old and of the new one."""
        webhook_id = _webhook_id(call)
        self._required_key()
        rotated = await self._store.rotate(webhook_id)
        if rotated is None:
            raise Refused(Problem.NOT_FOUND, _MISSING)
        salt, until = rotated
        return Answer(body=WebhookSecret(secret=self._secret(webhook_id, salt), previous_secret_until=until))

    async def ping(self, call: Call) -> Answer:
        """Send a test event of the type `webhook.ping`; a disabled webhook gets it when it is enabled."""
        delivery = await self._store.ping(_webhook_id(call), now_ms=int(time.time() * 1000))
        if delivery is None:
            raise Refused(Problem.NOT_FOUND, _MISSING)
        return Answer(202, delivery_view(delivery))

    async def deliveries(self, call: Call, query: DeliveryPage) -> Answer:
        """Deliveries of a webhook, newest first."""
        found = await self._store.deliveries(
            _webhook_id(call), state=query.state, before=decode_cursor(_LOG_KIND, query.cursor), limit=query.limit + 1
        )
        if found is None:
            raise Refused(Problem.NOT_FOUND, _MISSING)
        shown = found[: query.limit]
        next_cursor = encode_cursor(_LOG_KIND, shown[-1].id) if len(found) > query.limit else None
        return Answer(body=DeliveryList(items=[delivery_view(each) for each in shown], next_cursor=next_cursor))

    async def replay(self, call: Call) -> Answer:
        """Send a delivery again, with the same `webhook-id`. Receivers that know the id drop it."""
        delivery_id = call.path_id("delivery_id", Problem.NOT_FOUND)
        delivery = await self._store.replay(_webhook_id(call), delivery_id)
        if delivery is None:
            raise Refused(Problem.NOT_FOUND, _MISSING_DELIVERY)
        return Answer(body=delivery_view(delivery))

    def _required_key(self) -> bytes:
        if self._key is None:
            raise Refused(Problem.DEPENDENCY_UNAVAILABLE, _OFF)
        return self._key.get_secret_value().encode()

    def _secret(self, webhook_id: UUID, salt: bytes) -> str:
        return encode_secret(secret_of(self._required_key(), webhook_id, bytes(salt)))


def _webhook_id(call: Call) -> UUID:
    return call.path_id("webhook_id", Problem.NOT_FOUND)


def routes(webhooks: WebhookRoutes) -> tuple[Route, ...]:
    """The route table of this subject."""
    every, one = "/v1/webhooks", "/v1/webhooks/{webhook_id}"
    missing = (Problem.NOT_FOUND,)

    def act(
        path: str, handler: Handler, summary: str, action: Action, answers: type[BaseModel], status: int = 200
    ) -> Route:
        return Route(
            "POST", f"{one}/{path}", handler, summary, "webhooks", roles=STAFF, answers=answers, status=status,
            problems=missing, action=action,
        )  # fmt: skip

    return (
        Route("GET", every, webhooks.page, "List webhooks", "webhooks", roles=STAFF, query=Page, answers=WebhookList),
        Route(
            "POST", every, webhooks.create, "Create a webhook; the answer shows its secret once", "webhooks", roles=STAFF,
            body=WebhookInput, answers=WebhookCreated, status=201,
            problems=(Problem.IDEMPOTENCY_KEY_REUSED, Problem.DEPENDENCY_UNAVAILABLE), headers=("Idempotency-Key",),
            action=Action.WEBHOOK_CREATE,
        ),
        Route(
            "GET", one, webhooks.get, "Read a webhook", "webhooks", roles=STAFF, answers=WebhookView, problems=missing
        ),
        Route(
            "DELETE", one, webhooks.delete, "Delete a webhook", "webhooks", roles=STAFF, status=204, problems=missing,
            action=Action.WEBHOOK_DELETE,
        ),
        Route(
            "GET", f"{one}/deliveries", webhooks.deliveries, "List deliveries of a webhook", "webhooks", roles=STAFF,
            query=DeliveryPage, answers=DeliveryList, problems=missing,
        ),
        act("enable", webhooks.enable, "Enable a webhook", Action.WEBHOOK_ENABLE, WebhookView),
        act("disable", webhooks.disable, "Disable a webhook", Action.WEBHOOK_DISABLE, WebhookView),
        act("secret", webhooks.rotate, "Replace the secret", Action.WEBHOOK_ROTATE, WebhookSecret),
        act("ping", webhooks.ping, "Send a test event", Action.WEBHOOK_PING, DeliveryView, status=202),
        act(
            "deliveries/{delivery_id}/replay", webhooks.replay, "Send a delivery again", Action.WEBHOOK_REPLAY,
            DeliveryView,
        ),
    )  # fmt: skip
