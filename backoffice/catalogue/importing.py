"""Creates and changes many products by SKU in one request.

A batch is one transaction, but each item is judged alone: an invalid item is reported and left out. A batch may be sent
again, whole or in part, after any crash: a product that matches its item already keeps its version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from backoffice.caching.cache import Cache
from backoffice.catalogue.documents import (
    BATCH_ITEMS_MAX,
    Batch,
    BatchItem,
    BatchResult,
    ItemError,
    ItemResult,
    NewProduct,
)
from backoffice.catalogue.store import Known, Product, ProductBatches
from backoffice.web.routing import field_errors

_ATTEMPTS_MAX = 3  # against concurrent requests that create the same products


class ProductImport:
    """Puts batches."""

    def __init__(self, batches: ProductBatches, cache: Cache[Product]) -> None:
        """Uses them, owns nothing."""
        self._batches = batches
        self._cache = cache

    async def put(self, batch: Batch) -> BatchResult:
        """Create and change the products of a batch."""
        items, refused = _validated(batch)
        stop = batch.on_error == "stop"
        outcomes: dict[str, Any] = {}
        left = dict(items)
        for _attempt in range(_ATTEMPTS_MAX):
            known = await self._batches.compare(list(left.values()))
            for place, item in tuple(left.items()):
                if item["sku"] not in known and (errors := _errors_of_new(item)):
                    refused[place] = errors
                    del left[place]
            end = _end(refused, stop=stop)
            left = {place: item for place, item in left.items() if place < end}
            if left:
                # Written items keep the outcome of this attempt; only the other ones are sent again.
                outcomes |= await self._write(list(left.values()), known, dry_run=batch.dry_run, stop=stop)
                left = {place: item for place, item in left.items() if item["sku"] not in outcomes}
            if not left:
                break
        # With `stop`, nothing behind the first overtaken item was written: that item is the first one left.
        overtaken = ItemError(pointer="/sku", detail="another request changed this product; send the item again")
        refused |= {place: [overtaken] for place in left}
        return _result(batch, outcomes, refused)

    async def _write(
        self, items: list[dict[str, Any]], known: Mapping[str, Known], *, dry_run: bool, stop: bool
    ) -> dict[str, str]:
        """Outcomes of the written items by SKU."""
        changing = [product.id for item in items if (product := known.get(item["sku"])) and product.differs]
        async with self._cache.changing(*(() if dry_run else map(str, changing))):
            return await self._batches.upsert(items, changing=changing, dry_run=dry_run, stop=stop)


def _validated(batch: Batch) -> tuple[dict[int, dict[str, Any]], dict[int, list[ItemError]]]:
    """Items that an existing product could take, and errors of the other items; both by place."""
    items: dict[int, dict[str, Any]] = {}
    refused: dict[int, list[ItemError]] = {}
    seen: set[str] = set()
    for place, item in enumerate(batch.items):
        try:
            # What is compared and stored is what the model makes of the item: text in its one form.
            valid = BatchItem.model_validate(item, strict=True).model_dump(exclude_unset=True)
        except ValidationError as error:
            refused[place] = _item_errors(error)
            continue
        if valid["sku"] in seen:
            refused[place] = [ItemError(pointer="/sku", detail="appears more than once in this batch")]
        else:
            items[place] = valid
            seen.add(valid["sku"])
    return items, refused


def _result(batch: Batch, outcomes: Mapping[str, Any], refused: Mapping[int, list[ItemError]]) -> BatchResult:
    end = _end(refused, stop=batch.on_error == "stop")
    results: list[ItemResult] = []
    for place, item in enumerate(batch.items):
        sku = item.get("sku") if isinstance(item.get("sku"), str) else None
        if place > end:
            results.append(ItemResult(sku=sku, outcome="left_out", errors=[]))
        elif place in refused:
            results.append(ItemResult(sku=sku, outcome="refused", errors=refused[place]))
        else:
            results.append(ItemResult(sku=sku, outcome=outcomes[item["sku"]], errors=[]))
    return BatchResult(results=results)


def _end(refused: Mapping[int, object], *, stop: bool) -> int:
    """The place of the item that stops the batch; beyond all places if no item does."""
    return min(refused) if stop and refused else BATCH_ITEMS_MAX


def _errors_of_new(item: dict[str, Any]) -> list[ItemError]:
    try:
        NewProduct.model_validate(item, strict=True)
    except ValidationError as error:
        return _item_errors(error)
    return []


def _item_errors(error: ValidationError) -> list[ItemError]:
    return [ItemError(pointer=place.pointer, detail=place.detail) for place in field_errors(error)]
