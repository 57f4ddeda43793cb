"""The formats of events by family, as JSON Schema, and every event type. The one place where they are declared.

Performs no I/O. `flashsale events schema` prints them, `python -m tests.contract.events` writes them to docs/events.

A format is compatible as long as a reader of either version reads the events of both: members may be added that are not
required, and types. Any other change raises the version of the schema, and the old one stays until nothing writes it
(`tests/contract/test_events.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from domain.events import DATASCHEMA_PREFIX, ORDER_SCHEMA, PAYMENT_SCHEMA
from domain.orders import OrderStatus
from domain.payments import RefundReason
from domain.topology import TOPIC_ORDERS, TOPIC_PAYMENTS, TOPIC_PRODUCTS, TOPIC_SALES, TOPIC_USERS

Schema = Mapping[str, Any]

_UUID: Final[Schema] = {"type": "string", "format": "uuid"}
_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_UNITS: Final[Schema] = {"type": "integer", "minimum": 1}
_FLAG: Final[Schema] = {"type": "boolean"}
_CURRENCY: Final[Schema] = {"type": "string", "pattern": "^[A-Z]{3}$", "description": "ISO 4217"}
_MINOR: Final[Schema] = {"type": "integer", "minimum": 0, "description": "In minor units of the currency."}
_MS: Final[Schema] = {"type": "integer", "minimum": 0, "description": "Unix time in milliseconds."}


def _object(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> dict[str, Any]:
    return {"type": "object", "required": sorted(required), "properties": {**required, **(optional or {})}}


@dataclass(frozen=True, slots=True)
class Family:
    """Events about one kind of thing: their topic, the key of their records, their types, the format of their data.

    `types` maps each type to its meaning.
    """

    name: str
    topic: str
    key: str
    version: int
    types: Mapping[str, str]
    data: Schema

    @property
    def urn(self) -> str:
        """`ce_dataschema` of its events."""
        return f"{DATASCHEMA_PREFIX}{self.name}:{self.version}"

    @property
    def document(self) -> dict[str, Any]:
        """The published JSON Schema of `data`. Readers ignore members and types that they do not know."""
        return {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "$id": self.urn,
            "title": f"Data of {self.name} events, version {self.version}",
            "x-topic": self.topic,
            "x-key": self.key,
            "x-types": dict(self.types),
            **self.data,
        }


_ORDER: Final = Family(
    "order", TOPIC_ORDERS, "user id", ORDER_SCHEMA,
    {
        "order.reserved": "Units are held for a buyer.",
        "order.paid": "A payment has paid the order.",
        "order.cancelled": "The buyer or staff cancelled the order; its units are free again.",
        "order.expired": "The hold ended without a payment; the units are free again.",
        "order.rejected": "The order could not get units: the stock was sold out.",
    },
    _object(
        {
            "order_id": _UUID, "user_id": _UUID, "sale_id": _UUID,
            "status": {"type": "string", "enum": [status.label for status in OrderStatus]},
            "total_minor": _MINOR, "currency": _CURRENCY,
            "items": {
                "type": "array", "minItems": 1,
                "items": _object({"sku": _TEXT, "quantity": _UNITS, "unit_price_minor": _MINOR}),
            },
            "reserved_at_ms": _MS, "expires_at_ms": _MS,
        }
    ),
)  # fmt: skip

_PAYMENT: Final = Family(
    "payment", TOPIC_PAYMENTS, "user id", PAYMENT_SCHEMA,
    {
        "payment.captured": "Money of the provider pays an order.",
        "payment.refund_due": "Money is to go back: a whole payment, or with `refund_id` a refund by staff.",
        "payment.refunded": "The provider has sent money back.",
    },
    _object(
        {
            "event_id": {**_TEXT, "description": "The provider's id of the payment event."},
            "order_id": _UUID, "user_id": _UUID, "sale_id": _UUID, "amount_minor": _MINOR, "currency": _CURRENCY,
        },
        {"refund_id": _UUID, "reason": {"type": "string", "enum": [reason.value for reason in RefundReason]}},
    ),
)  # fmt: skip

_USER: Final = Family(
    "user", TOPIC_USERS, "user id", 1,
    {
        "user.registered": "There is a new account.",
        "user.changed": "Role, state or language of the account changed.",
        "user.erased": "The account was erased; only `user_id` and `state` are left.",
    },
    _object(
        {
            "user_id": _UUID,
            "state": {
                "type": "string", "enum": ["unverified", "verified", "erased"],
                "description": "Whether the account has proved its address.",
            },
        },
        {
            "role": {"type": "string", "enum": ["buyer", "staff", "admin"]},
            "language": {"type": ["string", "null"], "description": "null: the default of the installation."},
        },
    ),
)  # fmt: skip

_PRODUCT: Final = Family(
    "product", TOPIC_PRODUCTS, "product id", 1,
    {
        "product.created": "There is a new product.",
        "product.changed": "The product changed; the data is the whole product.",
        "product.deleted": "The product was deleted; only `product_id` and `sku` are left.",
    },
    _object(
        {"product_id": _UUID, "sku": _TEXT},
        {
            "name": _TEXT, "description": _TEXT, "price_minor": _MINOR, "currency": _CURRENCY,
            "attributes": {"type": "object"}, "active": _FLAG,
        },
    ),
)  # fmt: skip

_SALE: Final = Family(
    "sale", TOPIC_SALES, "sale id", 1,
    {
        "sale.created": "There is a new draft.",
        "sale.changed": "A draft or a published sale changed.",
        "sale.published": "Buyers see the sale.",
        "sale.paused": "Staff paused the sale.",
        "sale.resumed": "Staff resumed the sale.",
        "sale.ended": "Staff ended the sale before its window. The end of a window is `ends_at_ms`, and no event.",
        "sale.restocked": "Units were added: `sku` and `quantity`.",
        "sale.deleted": "A draft was deleted; only `sale_id` and `name` are left.",
    },
    _object(
        {"sale_id": _UUID},
        {
            "name": _TEXT, "stage": {"type": "string", "enum": ["draft", "loading", "published"]},
            "paused": _FLAG, "ended": _FLAG, "starts_at_ms": _MS, "ends_at_ms": _MS, "hold_seconds": _UNITS,
            "currency": _CURRENCY,
            "items": {
                "type": "array",
                "items": _object(
                    {
                        "sku": _TEXT, "price_minor": _MINOR,
                        "stock": {**_COUNT, "description": "Units when the sale was made, without restocks."},
                        "per_user_limit": {**_COUNT, "description": "0: no limit."},
                    }
                ),
            },
            "sku": {**_TEXT, "description": "Of `sale.restocked`."},
            "quantity": {**_UNITS, "description": "Of `sale.restocked`."},
        },
    ),
)  # fmt: skip

FAMILIES: Final[Mapping[str, Family]] = {family.name: family for family in (_ORDER, _PAYMENT, _USER, _PRODUCT, _SALE)}
EVENT_TYPES: Final = tuple(type_ for family in FAMILIES.values() for type_ in family.types)
