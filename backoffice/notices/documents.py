"""Requests and answers of this subject. Performs no I/O."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from pydantic import AfterValidator, Field, WithJsonSchema

from backoffice.web.fields import Change, Described, Model, Resource, Time
from domain.notices import ORDER_KINDS
from notices.language import languages, require_language

ENDPOINT_LENGTH_MAX: Final = 1000
P256DH_BYTES: Final = 65  # an uncompressed point of P-256
AUTH_BYTES: Final = 16
# A host with a name and the usual port, without user and fragment; workers check its IP address at each sending.
ENDPOINT_PATTERN: Final = r"^https://([A-Za-z0-9-]+\.)+[A-Za-z][A-Za-z0-9-]*(:443)?(/[!\x22$-~]*)?$"
TEST_ENDPOINT_PATTERN: Final = r"^https?://[!-~]+$"


class OrderNotices(Resource):
    """The notices of orders on one channel: whether the account wants them."""

    order_reserved: Annotated[bool, Field(description="Only where the shop sends these at all")]
    order_paid: bool
    order_cancelled: bool
    order_expired: bool
    order_refunded: bool


class PreferencesView(Resource):
    """The choices of an account. Notices about its security always go out, by e-mail."""

    language: Annotated[str, Field(description="Language of letters and pushes")]
    languages: Annotated[list[str], Field(description="The languages that there are")]
    email: OrderNotices
    push: OrderNotices


class OrderNoticesChange(Change):
    """New choices for one channel; kinds that are left out stay as they are."""

    order_reserved: bool | None = None
    order_paid: bool | None = None
    order_cancelled: bool | None = None
    order_expired: bool | None = None
    order_refunded: bool | None = None

    def applied_to(self, muted: Iterable[str]) -> list[str]:
        """The kinds that are off after the change, sorted."""
        off = set(muted)
        for name in self.model_fields_set:
            (off.discard if getattr(self, name) else off.add)(name)
        return sorted(off)


assert tuple(OrderNoticesChange.model_fields) == ORDER_KINDS == tuple(OrderNotices.model_fields)

LanguageCode = Annotated[
    str, AfterValidator(require_language), WithJsonSchema({"type": "string", "enum": list(languages())})
]


class PreferencesChange(Change):
    """A change of preferences."""

    language: LanguageCode | None = None
    email: OrderNoticesChange | None = None
    push: OrderNoticesChange | None = None


def order_notices(muted: Iterable[str]) -> OrderNotices:
    """The choices for a channel with these kinds off."""
    off = set(muted)
    return OrderNotices(**{kind.value: kind.value not in off for kind in ORDER_KINDS})


class SampleView(Resource):
    """A kind of notice in one language, of sample data."""

    kind: str
    language: str
    subject: str
    text: str
    html: str
    push: PushView | None


class PushView(Resource):
    """A web push as a browser shows it."""

    title: str
    body: str
    url: str


class LanguageView(Resource):
    """A language of notices; the name is its own for itself."""

    code: str
    name: str


class SampleList(Resource):
    """All kinds of letters and all languages."""

    kinds: list[str]
    languages: list[LanguageView]


def _bytes_of(text: str, length: int) -> bytes:
    """Unpadded base64url; ValueError for anything else."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("must be base64url without padding") from error
    if len(raw) != length:
        raise ValueError(f"must be {length} bytes in base64url without padding")
    return raw


def _point(text: str) -> str:
    try:
        EllipticCurvePublicKey.from_encoded_point(SECP256R1(), _bytes_of(text, P256DH_BYTES))
    except ValueError as error:
        raise ValueError("must be a public key of P-256, uncompressed, in base64url without padding") from error
    return text


def _auth(text: str) -> str:
    _bytes_of(text, AUTH_BYTES)
    return text


class SubscriptionKeys(Model):
    """Keys of a browser for its pushes (RFC 8291)."""

    p256dh: Annotated[str, AfterValidator(_point), Described("^[A-Za-z0-9_-]{87}$")]
    auth: Annotated[str, AfterValidator(_auth), Described("^[A-Za-z0-9_-]{22}$")]

    @property
    def point(self) -> bytes:
        """`p256dh` as bytes."""
        return _bytes_of(self.p256dh, P256DH_BYTES)

    @property
    def secret(self) -> bytes:
        """`auth` as bytes."""
        return _bytes_of(self.auth, AUTH_BYTES)


class NewSubscription(Model):
    """A subscription as a browser's `PushSubscription.toJSON()` gives it."""

    endpoint: Annotated[
        str,
        Field(max_length=ENDPOINT_LENGTH_MAX, description="Address of the push service"),
        Described(ENDPOINT_PATTERN),
    ]
    expirationTime: Annotated[  # noqa: N815 - the browser's name
        float | None, Field(description="Not used: an expired subscription is removed when it is next used")
    ] = None
    keys: SubscriptionKeys


class SubscriptionQuery(Model):
    """The subscription to remove."""

    endpoint: Annotated[str | None, Field(max_length=ENDPOINT_LENGTH_MAX, description="Without it, all")] = None


class SubscriptionView(Resource):
    """A subscribed browser. Its keys are not shown."""

    id: UUID
    endpoint: str
    created_at: Time


class SubscriptionList(Resource):
    """All subscriptions of an account, oldest first."""

    items: list[SubscriptionView]


class PushKeyView(Resource):
    """The key by which browsers know this installation (RFC 8292)."""

    public_key: Annotated[str, Field(description="`applicationServerKey` of `PushManager.subscribe()`")]


def subscription_view(row: tuple[UUID, str, datetime]) -> SubscriptionView:
    """A row as shown."""
    return SubscriptionView(id=row[0], endpoint=row[1], created_at=row[2])
