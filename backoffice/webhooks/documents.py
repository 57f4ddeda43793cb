"""Webhooks as JSON: request, query and response models. Performs no I/O."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from backoffice.web.fields import Model, Page, Resource, Text, Time
from backoffice.web.messages import invalid
from backoffice.webhooks.store import Delivery, Webhook
from domain.webhooks import (
    DESCRIPTION_LENGTH_MAX,
    EVENT_TYPE_PATTERN,
    EVENT_TYPES_MAX,
    PORTS,
    URL_LENGTH_MAX,
    DeliveryState,
    DisabledReason,
)
from runtime.outbound.addresses import Network, is_allowed


def _distinct(event_types: list[str]) -> list[str]:
    if len(set(event_types)) != len(event_types):
        raise ValueError("each event type may appear only once")
    return event_types


EventType = Annotated[str, Field(pattern=EVENT_TYPE_PATTERN)]


class WebhookInput(Model):
    """A webhook to create. An event type is exact, or ends with `.*` for all of a family."""

    url: Annotated[str, Field(min_length=1, max_length=URL_LENGTH_MAX, pattern=r"^https?://[!-~]+$")]
    event_types: Annotated[list[EventType], Field(min_length=1, max_length=EVENT_TYPES_MAX), AfterValidator(_distinct)]
    description: Annotated[Text, Field(max_length=DESCRIPTION_LENGTH_MAX)] = ""


class WebhookView(Resource):
    """A webhook. `waiting` deliveries are still to be sent; `skipped` events found the backlog at its bound.

    `failing_since` is the first failure after the last success. Until `previous_secret_until`, the replaced secret
    signs, too.
    """

    id: str
    url: str
    description: str
    event_types: list[str]
    enabled: bool
    disabled_reason: DisabledReason | None
    failures: int
    failing_since: Time | None
    paused_until: Time | None
    waiting: int
    skipped: int
    previous_secret_until: Time | None
    created_at: Time


class WebhookCreated(WebhookView):
    """A new webhook with its secret, which no other answer shows."""

    secret: str


class WebhookSecret(Resource):
    """The new secret, which no other answer shows. The old one signs, too, until `previous_secret_until`."""

    secret: str
    previous_secret_until: Time


class WebhookList(Resource):
    """A page of webhooks, newest first."""

    items: list[WebhookView]
    next_cursor: str | None


class DeliveryPage(Page):
    """Query of the delivery log."""

    state: DeliveryState | None = None


class DeliveryAttempt(Resource):
    """One attempt. `status` is null without an answer; `answer` is the beginning of its body, or the fault."""

    at: str
    status: int | None
    answer: str


class DeliveryView(Resource):
    """A delivery: an event for a webhook. `event_id` is its `webhook-id`; `history` has the last attempts."""

    id: str
    event_id: str
    event_type: str
    state: DeliveryState
    attempts: int
    status: int | None
    next_attempt_at: Time | None
    attempted_at: Time | None
    created_at: Time
    history: list[DeliveryAttempt]
    body: str


class DeliveryList(Resource):
    """A page of deliveries, newest first."""

    items: list[DeliveryView]
    next_cursor: str | None


def check_url(url: str, allowed: Sequence[Network]) -> None:
    """Refused for an address that can never be sent to. Names are resolved at each connection, not here."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise invalid("/url", "is not a URL") from error
    if not host:
        raise invalid("/url", "must have a host")
    if parts.username is not None or parts.password is not None:
        raise invalid("/url", "must not contain a user name or a password")
    if parts.fragment:
        raise invalid("/url", "must not have a fragment")
    if not allowed and parts.scheme != "https":
        raise invalid("/url", "must begin with https://")
    if not allowed and port is not None and port not in PORTS:
        raise invalid("/url", f"must have one of the ports {', '.join(map(str, PORTS))}")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return  # a name
    if not is_allowed(host, allowed):
        raise invalid("/url", "must be a public address")


def webhook_members(webhook: Webhook) -> dict[str, Any]:
    """The members of `WebhookView`."""
    return {
        "id": str(webhook.id),
        "url": webhook.url,
        "description": webhook.description,
        "event_types": webhook.event_types,
        "enabled": webhook.enabled,
        "disabled_reason": webhook.disabled_reason,
        "failures": webhook.failures,
        "failing_since": webhook.failing_since,
        "paused_until": webhook.paused_until,
        "waiting": webhook.waiting,
        "skipped": webhook.skipped,
        "previous_secret_until": webhook.previous_until,
        "created_at": webhook.created_at,
    }


def delivery_view(delivery: Delivery) -> DeliveryView:
    """A delivery with its attempts."""
    return DeliveryView(
        id=str(delivery.id),
        event_id=delivery.event_id,
        event_type=delivery.event_type,
        state=DeliveryState(delivery.state),
        attempts=delivery.attempts,
        status=delivery.status,
        next_attempt_at=delivery.next_at,
        attempted_at=delivery.attempted_at,
        created_at=delivery.created_at,
        history=[DeliveryAttempt(**attempt) for attempt in delivery.history],
        body=bytes(delivery.body).decode("utf-8", "replace"),
    )
