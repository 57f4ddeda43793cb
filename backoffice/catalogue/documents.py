"""Products as JSON: request and response models. Performs no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, Field, WithJsonSchema

from backoffice.catalogue.store import Product
from backoffice.web.fields import (
    TEXT_PATTERN,
    Change,
    Currency,
    Model,
    Name,
    Page,
    PriceMinor,
    Resource,
    Sku,
    Text,
    plain_text,
)

NUMBER_MAX = 2**53 - 1  # every JSON reader keeps integers up to here exactly
TEXT_LENGTH_MAX = 1000
TEXTS_MAX = 50
BATCH_ITEMS_MAX = 1000
PRODUCT_BYTES_MAX = 1024 * 1024  # of one product, and of a batch
BATCH_VALUES_MAX = 100_000  # members and list elements of all items; the body's size is bounded, too


def _attribute(value: Any) -> Any:
    # Not a pydantic union: its errors point to the branches of the union instead of places in the body.
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        if not -NUMBER_MAX <= value <= NUMBER_MAX:  # also refuses infinities and NaN
            raise ValueError(f"a number must be between -{NUMBER_MAX} and {NUMBER_MAX}")
        return value
    texts = value if isinstance(value, list) else [value]
    if len(texts) > TEXTS_MAX or not all(isinstance(text, str) and len(text) <= TEXT_LENGTH_MAX for text in texts):
        raise ValueError(
            f"must be a text of at most {TEXT_LENGTH_MAX} characters, a list of at most {TEXTS_MAX} such texts, "
            "a number, true, false or null"
        )
    plain = [plain_text(text) for text in texts]
    return plain if isinstance(value, list) else plain[0]


_TEXT_SCHEMA = {"type": "string", "maxLength": TEXT_LENGTH_MAX, "pattern": TEXT_PATTERN}
_VALUE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "boolean"},
        {"type": "number", "minimum": -NUMBER_MAX, "maximum": NUMBER_MAX},
        _TEXT_SCHEMA,
        {"type": "array", "items": _TEXT_SCHEMA, "maxItems": TEXTS_MAX},
        {"type": "null"},
    ]
}
_Value = Annotated[Any, AfterValidator(_attribute), WithJsonSchema(_VALUE_SCHEMA)]
Attributes = Annotated[
    dict[Annotated[Text, Field(min_length=1, max_length=64)], _Value],
    # By hand: pydantic would describe the pattern of the keys as `patternProperties`, without their length.
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": 64,
            "propertyNames": {"minLength": 1, "maxLength": 64, "pattern": TEXT_PATTERN},
            "additionalProperties": _VALUE_SCHEMA,
        }
    ),
    Field(max_length=64),
]
Description = Annotated[Text, Field(max_length=10_000)]


class NewProduct(Model):
    """A product to create."""

    sku: Sku
    name: Name
    description: Description = ""
    price_minor: PriceMinor
    currency: Currency
    attributes: Attributes = Field(default_factory=dict)
    active: bool = True


class ProductChange(Change):
    """Members of a product to change."""

    sku: Sku | None = None
    name: Name | None = None
    description: Description | None = None
    price_minor: PriceMinor | None = None
    currency: Currency | None = None
    attributes: Attributes | None = None
    active: bool | None = None


class ProductView(Resource):
    """A product."""

    id: UUID
    sku: str
    name: str
    description: str
    price_minor: int
    currency: str
    attributes: dict[str, Annotated[Any, WithJsonSchema(_VALUE_SCHEMA)]]
    active: bool


class ProductList(Resource):
    """A page of products: newest first, or best match first."""

    items: list[ProductView]
    next_cursor: str | None


class ProductQuery(Page):
    """Filters of the list."""

    q: Annotated[Text, Field(min_length=1, max_length=200)] | None = Field(
        None, description="Words to search for, best match first; the last word may be incomplete"
    )
    active: bool | None = Field(
        None, description="For staff: only active products (true) or only inactive ones (false)"
    )


class Batch(Model):
    """Products as in `POST /v1/products`. An item may omit members of an existing product; they stay unchanged."""

    items: list[dict[str, Any]] = Field(min_length=1, max_length=BATCH_ITEMS_MAX)
    dry_run: bool = Field(default=False, description="Report the outcome of each item without changing anything")
    on_error: Literal["stop", "skip"] = Field(
        "skip", description="skip: leave out refused items; stop: leave out everything from the first refused item on"
    )


Outcome = Literal["created", "updated", "unchanged", "refused", "left_out"]


class BatchItem(ProductChange):
    """An item for an existing product; a new product needs the members of `NewProduct`."""

    sku: Sku


class ItemError(Resource):
    """The reason why an item is refused, with a JSON pointer into the item."""

    pointer: str
    detail: str


class ItemResult(Resource):
    """The outcome of one item."""

    sku: str | None
    outcome: Outcome
    errors: list[ItemError]


class BatchResult(Resource):
    """The outcomes of all items, in their order."""

    results: list[ItemResult]


def product_view(product: Product) -> ProductView:
    """The product as JSON."""
    return ProductView.model_validate(product, from_attributes=True)


def product_list(products: Iterable[Product], next_cursor: str | None) -> ProductList:
    """A page as JSON."""
    return ProductList(items=[product_view(product) for product in products], next_cursor=next_cursor)
