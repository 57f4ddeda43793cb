"""Products over HTTP: public to read, for staff to change, with entity tags against lost updates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from uuid import UUID

from backoffice.catalogue.documents import (
    BATCH_VALUES_MAX,
    PRODUCT_BYTES_MAX,
    Batch,
    BatchResult,
    NewProduct,
    ProductChange,
    ProductList,
    ProductQuery,
    ProductView,
    product_list,
    product_view,
)
from backoffice.catalogue.gate import Gate
from backoffice.catalogue.importing import ProductImport
from backoffice.catalogue.search import Place, Search
from backoffice.catalogue.service import ProductMissing, ProductService, VersionConflict
from backoffice.catalogue.store import Product, SkuTaken
from backoffice.web.conditions import entity_tag, is_known, required_versions
from backoffice.web.fields import decode_cursor, encode_cursor
from backoffice.web.messages import EVERYONE, STAFF, Answer, Call, Refused
from backoffice.web.routing import Route
from domain.problems import Problem
from runtime.audit import Action

_KIND = "products"


class ProductRoutes:
    """The handlers."""

    def __init__(self, service: ProductService, search: Search, imports: ProductImport) -> None:
        """Uses them, owns nothing."""
        self._service = service
        self._search = search
        self._imports = imports
        self._gate = Gate()

    async def create(self, _: Call, body: NewProduct) -> Answer:
        """Create a product."""
        with _refusals():
            product = await self._service.create(body.model_dump())
        return _answer(product, 201, location=f"/v1/products/{product.id}")

    async def get(self, call: Call) -> Answer:
        """One product; 304 if the client has this version. Only staff see inactive products."""
        with _refusals():
            product = await self._service.get(_product_id(call))
            if not product.active and not _is_staff(call):
                raise ProductMissing
        if is_known(call, product.version):
            return Answer(304, None, _caching(product))
        return _answer(product)

    async def page(self, call: Call, query: ProductQuery) -> Answer:
        """Products, newest first; with a search text best match first. Only staff see inactive products."""
        is_staff = _is_staff(call)
        if query.active is False and not is_staff:
            raise Refused(Problem.TOKEN_MISSING if call.caller is None else Problem.FORBIDDEN)
        async with nullcontext() if is_staff else self._gate.admitted():
            return await self._page(query, active=query.active if is_staff else True)

    async def _page(self, query: ProductQuery, *, active: bool | None) -> Answer:
        wanted = query.limit + 1
        shown: Sequence[Product]
        next_cursor = None
        if query.q is None:
            before = decode_cursor(_KIND, query.cursor)
            listed = await self._service.page(before=before, active=active, limit=wanted)
            shown = listed[: query.limit]
            if len(listed) == wanted:
                next_cursor = encode_cursor(_KIND, shown[-1].id)
        else:
            after = Place.decode(query.q, query.cursor)
            found = await self._search.page(query.q, after=after, active=active, limit=wanted)
            shown = found[: query.limit]
            if len(found) == wanted:
                next_cursor = Place.of(found[query.limit - 1]).encode(query.q)
        return Answer(body=product_list(shown, next_cursor))

    async def change(self, call: Call, body: ProductChange) -> Answer:
        """Change a product that has the expected version."""
        product_id, versions = _product_id(call), required_versions(call)
        with _refusals():
            return _answer(await self._service.change(product_id, versions, body.model_dump(exclude_unset=True)))

    async def delete(self, call: Call) -> Answer:
        """Delete a product that has the expected version."""
        product_id, versions = _product_id(call), required_versions(call)
        with _refusals():
            await self._service.delete(product_id, versions)
        return Answer(204)

    async def put_batch(self, _: Call, body: Batch) -> Answer:
        """Create and change many products."""
        return Answer(body=await self._imports.put(body))


def _is_staff(call: Call) -> bool:
    return call.caller is not None and call.caller.role in STAFF


def _product_id(call: Call) -> UUID:
    return call.path_id("product_id", Problem.PRODUCT_NOT_FOUND)


def _answer(product: Product, status: int = 200, **headers: str) -> Answer:
    return Answer(status, product_view(product), {**_caching(product), **headers})


def _caching(product: Product) -> dict[str, str]:
    # no-cache: clients may store the product but must ask whether it is still current.
    return {"etag": entity_tag(product.version), "cache-control": "no-cache"}


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn the exceptions of this subject into problems."""
    try:
        yield
    except ProductMissing as error:
        raise Refused(Problem.PRODUCT_NOT_FOUND) from error
    except VersionConflict as error:
        raise Refused(Problem.PRECONDITION_FAILED) from error
    except SkuTaken as error:
        raise Refused(Problem.SKU_TAKEN) from error


def routes(products: ProductRoutes) -> tuple[Route, ...]:
    """The route table of this subject."""
    conditional = (Problem.PRODUCT_NOT_FOUND, Problem.PRECONDITION_FAILED, Problem.PRECONDITION_REQUIRED)
    one = "/v1/products/{product_id}"
    return (
        Route(
            "POST",
            "/v1/products/import",
            products.put_batch,
            "Create or change many products by SKU",
            "products",
            roles=STAFF,
            body=Batch,
            body_values_max=BATCH_VALUES_MAX,
            body_bytes_max=PRODUCT_BYTES_MAX,
            answers=BatchResult,
            action=Action.PRODUCT_IMPORT,
        ),
        Route(
            "GET",
            "/v1/products",
            products.page,
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
            products.create,
            "Create a product",
            "products",
            roles=STAFF,
            body=NewProduct,
            body_bytes_max=PRODUCT_BYTES_MAX,
            answers=ProductView,
            status=201,
            problems=(Problem.SKU_TAKEN,),
            action=Action.PRODUCT_CREATE,
        ),
        Route(
            "GET",
            one,
            products.get,
            "Read a product",
            "products",
            roles=EVERYONE,
            anonymous=True,
            answers=ProductView,
            problems=(Problem.PRODUCT_NOT_FOUND,),
            headers=("If-None-Match",),
        ),
        Route(
            "PATCH",
            one,
            products.change,
            "Change a product",
            "products",
            roles=STAFF,
            body=ProductChange,
            body_bytes_max=PRODUCT_BYTES_MAX,
            answers=ProductView,
            problems=(*conditional, Problem.SKU_TAKEN),
            headers=("If-Match!",),
            action=Action.PRODUCT_CHANGE,
        ),
        Route(
            "DELETE",
            one,
            products.delete,
            "Delete a product",
            "products",
            roles=STAFF,
            status=204,
            problems=conditional,
            headers=("If-Match!",),
            action=Action.PRODUCT_DELETE,
        ),
    )
