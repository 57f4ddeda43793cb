"""From a buyer's click on the page to captured payments and their webhooks. Performs no I/O."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import orjson

from devstack.payment_simulator.behaviour import Behaviour
from devstack.payment_simulator.books import Checkout, Entry, Webhook

LATE_MS: Final = 2000  # after the end of the hold
DUPLICATE_MS: Final = 1000  # within this time a duplicate follows


class Action(StrEnum):
    """A button of the page. The last two let a person or a test try the rare cases."""

    PAY = "pay"
    DECLINE = "decline"
    PAY_TWICE = "pay_twice"
    PAY_LATE = "pay_late"  # the webhook leaves after the end of the hold


class TooLate(Exception):
    """The hold of the order is over."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A click's effect."""

    entries: Sequence[Entry]
    webhooks: Sequence[Webhook]
    declined: bool


def decide(checkout: Checkout, action: Action, behaviour: Behaviour, *, now_ms: int) -> Outcome:
    """The effect of a click; none for a page that is paid, except for a second payment. Raises TooLate."""
    if checkout.captures and action is not Action.PAY_TWICE:
        return Outcome((), (), declined=False)
    if now_ms >= checkout.expires_at_ms and action in (Action.PAY, Action.DECLINE):
        raise TooLate
    name = f"{checkout.order_id}:{checkout.captures}"
    if action is Action.DECLINE or (action is Action.PAY and behaviour.happens("decline", name)):
        webhooks = _webhooks(checkout, new_event_id(), "payment.failed", checkout.amount_minor, behaviour, now_ms, name)
        return Outcome((), webhooks, declined=True)
    twice = not checkout.captures and (action is Action.PAY_TWICE or behaviour.happens("second", name))
    amount_minor = checkout.amount_minor + behaviour.happens("mismatch", name)
    late = action is Action.PAY_LATE or behaviour.happens("late", name)
    entries: list[Entry] = []
    webhooks = []
    for number in range(2 if twice else 1):
        event_id = new_event_id()
        entries.append(
            Entry(event_id, "payment", event_id, checkout.order_id, amount_minor, checkout.currency, now_ms)
        )  # fmt: skip
        leaves_ms = max(now_ms, checkout.expires_at_ms) + LATE_MS if late else now_ms
        webhooks += _webhooks(
            checkout, event_id, "payment.succeeded", amount_minor, behaviour, leaves_ms, f"{name}:{number}"
        )
    return Outcome(entries, webhooks, declined=False)


def new_event_id() -> str:
    """An id that no other event has."""
    return f"evt_{secrets.token_hex(12)}"


def _webhooks(
    checkout: Checkout, event_id: str, kind: str, amount_minor: int, behaviour: Behaviour, leaves_ms: int, name: str
) -> list[Webhook]:
    if behaviour.happens("lost", name):
        return []
    body = orjson.dumps(
        {
            "event_id": event_id,
            "type": kind,
            "order_id": checkout.order_id,
            "amount_minor": amount_minor,
            "currency": checkout.currency,
        }
    )
    leaves_ms += int(behaviour.webhook_delay_ms * behaviour.fraction("delay", name))
    if behaviour.happens("reorder", name):
        leaves_ms += int(behaviour.reorder_ms * behaviour.fraction("later", name))
    webhooks = [Webhook(body, leaves_ms)]
    if behaviour.happens("duplicate", name):
        webhooks.append(Webhook(body, leaves_ms + int(DUPLICATE_MS * behaviour.fraction("again", name))))
    return webhooks
