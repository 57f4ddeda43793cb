"""Many products in one request: made or changed by their SKU, repeated without a second effect.

A batch is one transaction, but each of its items is judged alone: one that is not valid is told and left out. Sending a
batch again, whole or in part, after any crash, changes nothing that is as it says already, and raises no version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from uuid import UUID

from psycopg import Rollback
from psycopg.types.json import Jsonb
from pydantic import Field, ValidationError

from backoffice.caching.cache import Cache
from backoffice.catalogue.routes import NewProduct, ProductChange
from backoffice.catalogue.store import Product
from backoffice.stores import Stores
from backoffice.web.fields import Change, Model, Resource, Sku
from backoffice.web.messages import STAFF, Answer, Call
from backoffice.web.routing import Route, field_errors
from domain import ids
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "importing.sql")
ITEMS_MAX = 1000
_ATTEMPTS = 3  # another one made the same product in this moment
Outcome = Literal["created", "updated", "unchanged", "refused", "left_out"]


class Batch(Model):
    """Products as `POST /v1/products` takes them. Members that an existing product's item lacks stay as they are."""

    items: list[dict[str, Any]] = Field(min_length=1, max_length=ITEMS_MAX)
    dry_run: bool = Field(default=False, description="Say what would become of each, and change nothing")
    on_error: Literal["stop", "skip"] = Field("skip", description="stop: leave out all from the first that is refused")


class ItemError(Resource):
    """Why an item is refused: a JSON pointer into it, and the reason."""

    pointer: str
    detail: str


class ItemResult(Resource):
    """What became of an item."""

    sku: str | None
    outcome: Outcome
    errors: list[ItemError]


class BatchResult(Resource):
    """What became of each item, in their order."""

    results: list[ItemResult]


class _Item(ProductChange):
    """What an existing product takes."""

    sku: Sku


class Imports:
    """The operation."""

    def __init__(self, stores: Stores, cache: Cache[Product]) -> None:
        """Uses the catalogue's pool and the cache of products, owns nothing."""
        self._catalogue = stores.catalogue
        self._cache = cache

    async def put(self, _: Call, body: Batch) -> Answer:
        """Make and change products."""
        refused: dict[int, list[ItemError]] = {}
        items: dict[int, dict[str, Any]] = {}
        seen: set[str] = set()
        for place, item in enumerate(body.items):
            errors = _errors(_Item, item)
            if not errors and item["sku"] in seen:
                errors = [ItemError(pointer="/sku", detail="is in this batch already")]
            if errors:
                refused[place] = errors
            else:
                items[place] = item
                seen.add(item["sku"])
        stop = body.on_error == "stop"
        outcomes: dict[str, Any] = {}
        left = dict(items)
        for _attempt in range(_ATTEMPTS):
            known = await self._compare(list(left.values()))
            for place, item in tuple(left.items()):
                if item["sku"] not in known and (errors := _errors(NewProduct, item)):
                    refused[place] = errors
                    del left[place]
            end = _end(refused, stop=stop)
            left = {place: item for place, item in left.items() if place < end}
            if left:
                # What an attempt has written is told as it was written: only the rest is sent again.
                outcomes |= await self._write(list(left.values()), known, dry_run=body.dry_run, stop=stop)
                left = {place: item for place, item in left.items() if item["sku"] not in outcomes}
            if not left:
                break
        # Behind the one that was overtaken nothing was written if all is to stop there: it is the first that is left.
        overtaken = ItemError(pointer="/sku", detail="changed at the same time by somebody else: repeat it")
        refused |= {place: [overtaken] for place in left}
        end = _end(refused, stop=stop)
        results: list[ItemResult] = []
        for place, item in enumerate(body.items):
            sku = item.get("sku") if isinstance(item.get("sku"), str) else None
            if place > end:
                results.append(ItemResult(sku=sku, outcome="left_out", errors=[]))
            elif place in refused:
                results.append(ItemResult(sku=sku, outcome="refused", errors=refused[place]))
            else:
                results.append(ItemResult(sku=sku, outcome=outcomes[item["sku"]], errors=[]))
        return Answer(body=BatchResult(results=results))

    async def _compare(self, items: list[dict[str, Any]]) -> dict[str, tuple[UUID, bool]]:
        """Products that are there by SKU: their id, and whether they would change."""
        async with self._catalogue.connection() as connection:
            cursor = await connection.execute(SQL["compare"], {"items": Jsonb(items)})
            return {sku: (product_id, differs) for sku, product_id, differs in await cursor.fetchall()}

    async def _write(
        self,
        items: list[dict[str, Any]],
        known: Mapping[str, tuple[UUID, bool]],
        *,
        dry_run: bool,
        stop: bool,
    ) -> dict[str, str]:
        """What became of those that were written. The others were overtaken; `stop`: or are behind one that was."""
        rows = [{**item, "id": str(ids.new_uuid7())} for item in items]
        skus = [item["sku"] for item in items]
        told = [known[sku][0] for sku in skus if sku in known and known[sku][1]]
        async with (
            self._cache.changing(*(() if dry_run else map(str, told))),
            self._catalogue.connection() as connection,
            connection.transaction(force_rollback=dry_run),
        ):
            await connection.execute(SQL["lock"], {"skus": skus})
            written: dict[str, str] = {}
            while rows:
                async with connection.transaction() as attempt:
                    cursor = await connection.execute(SQL["upsert"], {"items": Jsonb(rows), "told": told})
                    outcomes: dict[str, str] = dict(await cursor.fetchall())
                    first = next((place for place, row in enumerate(rows) if outcomes[row["sku"]] == "overtaken"), None)
                    if first is None or not stop:
                        written = {sku: outcome for sku, outcome in outcomes.items() if outcome != "overtaken"}
                        break
                    # Undo it, and write those before only: fewer each time, so this ends.
                    rows = rows[:first]
                    raise Rollback(attempt)
            return written


def _end(refused: Mapping[int, object], *, stop: bool) -> int:
    """The place of the item that ends the batch, beyond all when none does."""
    return min(refused) if stop and refused else ITEMS_MAX


def _errors(model: type[Change] | type[NewProduct], item: dict[str, Any]) -> list[ItemError]:
    try:
        model.model_validate(item, strict=True)
    except ValidationError as error:
        return [ItemError(pointer=place.pointer, detail=place.detail) for place in field_errors(error)]
    return []


def routes(imports: Imports) -> tuple[Route, ...]:
    """Operations of this subject."""
    return (
        Route(
            "POST",
            "/v1/products/import",
            imports.put,
            "Make or change many products by their SKU",
            "products",
            roles=STAFF,
            body=Batch,
            answers=BatchResult,
        ),
    )
