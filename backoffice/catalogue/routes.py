"""Products over HTTP: public to read, for staff to change, with entity tags against lost updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, Field, WithJsonSchema

from backoffice.caching.cache import Cache
from backoffice.catalogue.gate import Gate
from backoffice.catalogue.search import Place, Search
from backoffice.catalogue.store import Product, Products, SkuTaken
from backoffice.web.conditions import entity_tag, is_known, required_versions
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
    decode_cursor,
    encode_cursor,
    printable,
)
from backoffice.web.messages import EVERYONE, STAFF, Answer, Call, Refused
from backoffice.web.routing import Route
from domain.problems import Problem

_KIND = "products"
NUMBER_MAX = 2**53 - 1  # what every JSON reader keeps exactly
TEXT_LENGTH_MAX = 1000
TEXTS_MAX = 50


def _attribute(value: Any) -> Any:
    # By hand: the errors of a union would point to its branches, not to places of the body.
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        if not -NUMBER_MAX <= value <= NUMBER_MAX:  # also infinities and NaN
            raise ValueError(f"a number is between -{NUMBER_MAX} and {NUMBER_MAX}")
        return value
    texts = value if isinstance(value, list) else [value]
    if len(texts) > TEXTS_MAX or not all(isinstance(text, str) and len(text) <= TEXT_LENGTH_MAX for text in texts):
        raise ValueError(
            f"is a text of up to {TEXT_LENGTH_MAX} characters, up to {TEXTS_MAX} of them in a list, a number, true, false or null"
        )
    for text in texts:
        printable(text)
    return value


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
    # Of its keys, pydantic would describe the pattern only, as if it told which members have which value.
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
    """A product to make."""

    sku: Sku
    name: Name
    description: Description = ""
    price_minor: PriceMinor
    currency: Currency
    attributes: Attributes = Field(default_factory=dict)
    active: bool = True


class ProductChange(Change):
    """Another version of a product."""

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
    """Which products."""

    q: Annotated[Text, Field(min_length=1, max_length=200)] | None = Field(
        None, description="Words to look for, best match first; the last one may be unfinished"
    )
    active: bool | None = Field(None, description="For staff: only products that are active, or are not")


def _answer(product: Product, status: int = 200, **headers: str) -> Answer:
    body = ProductView.model_validate(product, from_attributes=True)
    # Readers may keep it but must ask whether it is still the same.
    return Answer(status, body, {"etag": entity_tag(product.version), "cache-control": "no-cache", **headers})


class Catalogue:
    """The operations."""

    def __init__(self, products: Products, search: Search, cache: Cache[Product]) -> None:
        """Uses the stores and the cache, owns nothing."""
        self._products = products
        self._search = search
        self._cache = cache
        self._gate = Gate()

    async def create(self, _: Call, body: NewProduct) -> Answer:
        """A new product."""
        try:
            product = await self._products.create(body.model_dump())
        except SkuTaken as error:
            raise Refused(Problem.SKU_TAKEN) from error
        return _answer(product, 201, location=f"/v1/products/{product.id}")

    async def get(self, call: Call) -> Answer:
        """One product; 304 when the reader has it."""
        product_id = call.path_id("product_id", Problem.PRODUCT_NOT_FOUND)
        product = await self._cache.get(str(product_id), lambda: self._products.get(product_id))
        if product is None:
            raise Refused(Problem.PRODUCT_NOT_FOUND)
        if is_known(call, product.version):
            return Answer(304, None, {"etag": entity_tag(product.version), "cache-control": "no-cache"})
        return _answer(product)

    async def page(self, call: Call, query: ProductQuery) -> Answer:
        """Products, newest first; with a text those that match it, best first. Only staff see those that are not active."""
        if call.caller is not None and call.caller.role in STAFF:
            return await self._page(query, active=query.active)
        if query.active is False:
            raise Refused(Problem.TOKEN_MISSING if call.caller is None else Problem.FORBIDDEN)
        async with self._gate.passed():
            return await self._page(query, active=True)

    async def _page(self, query: ProductQuery, *, active: bool | None) -> Answer:
        wanted = query.limit + 1
        shown: Sequence[Product]
        next_cursor = None
        if query.q is None:
            before = decode_cursor(_KIND, query.cursor)
            listed = await self._products.page(before=before, active=active, limit=wanted)
            shown = listed[: query.limit]
            if len(listed) == wanted:
                next_cursor = encode_cursor(_KIND, shown[-1].id)
        else:
            after = Place.decode(query.q, query.cursor)
            found = await self._search.page(query.q, after=after, active=active, limit=wanted)
            shown = found[: query.limit]
            if len(found) == wanted:
                next_cursor = Place.of(found[query.limit - 1]).encode(query.q)
        items = [ProductView.model_validate(product, from_attributes=True) for product in shown]
        return Answer(body=ProductList(items=items, next_cursor=next_cursor))

    async def change(self, call: Call, body: ProductChange) -> Answer:
        """Change members of a product that still has the expected version."""
        product_id = call.path_id("product_id", Problem.PRODUCT_NOT_FOUND)
        versions = required_versions(call)
        try:
            async with self._cache.changing(str(product_id)):
                product = await self._products.change(product_id, versions, body.model_dump(exclude_unset=True))
        except SkuTaken as error:
            raise Refused(Problem.SKU_TAKEN) from error
        if product is None:
            raise await self._why_not(product_id)
        return _answer(product)

    async def delete(self, call: Call) -> Answer:
        """Remove a product that still has the expected version. Sales that have it keep their own copy of SKU and price."""
        product_id = call.path_id("product_id", Problem.PRODUCT_NOT_FOUND)
        versions = required_versions(call)
        async with self._cache.changing(str(product_id)):
            deleted = await self._products.delete(product_id, versions)
        if not deleted:
            raise await self._why_not(product_id)
        return Answer(204)

    async def _why_not(self, product_id: UUID) -> Refused:
        there = await self._products.get(product_id) is not None
        return Refused(Problem.PRECONDITION_FAILED if there else Problem.PRODUCT_NOT_FOUND)


def routes(catalogue: Catalogue) -> tuple[Route, ...]:
    """Operations of this subject."""
    conditional = (Problem.PRODUCT_NOT_FOUND, Problem.PRECONDITION_FAILED, Problem.PRECONDITION_REQUIRED)
    one = "/v1/products/{product_id}"
    return (
        Route(
            "GET",
            "/v1/products",
            catalogue.page,
            "List or search products",
            "products",
            roles=EVERYONE,
            anonymous=True,
            query=ProductQuery,
            answers=ProductList,
        ),
        Route(
            "POST",
            "/v1/products",
            catalogue.create,
            "Make a product",
            "products",
            roles=STAFF,
            body=NewProduct,
            answers=ProductView,
            status=201,
            problems=(Problem.SKU_TAKEN,),
        ),
        Route(
            "GET",
            one,
            catalogue.get,
            "Read a product",
            "products",
            answers=ProductView,
            problems=(Problem.PRODUCT_NOT_FOUND,),
            headers=("If-None-Match",),
        ),
        Route(
            "PATCH",
            one,
            catalogue.change,
            "Change a product",
            "products",
            roles=STAFF,
            body=ProductChange,
            answers=ProductView,
            problems=(*conditional, Problem.SKU_TAKEN),
            headers=("If-Match!",),
        ),
        Route(
            "DELETE",
            one,
            catalogue.delete,
            "Remove a product",
            "products",
            roles=STAFF,
            status=204,
            problems=conditional,
            headers=("If-Match!",),
        ),
    )
