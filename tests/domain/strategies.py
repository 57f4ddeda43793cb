"""Hypothesis strategies for the domain's values, in the whole range that the packed forms can hold."""

from __future__ import annotations

import string
from uuid import UUID

from hypothesis import strategies as st

from domain import orders, sales

SKU_ALPHABET = string.ascii_letters + string.digits + "._-"
KEY_ALPHABET = "".join(chr(code) for code in range(0x21, 0x7F))

u8 = st.integers(0, 2**8 - 1)
u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u40 = st.integers(0, 2**40 - 1)
u48 = st.integers(0, 2**48 - 1)
u64 = st.integers(0, 2**64 - 1)
uuids = st.integers(0, 2**128 - 1).map(lambda value: UUID(int=value))
skus = st.text(SKU_ALPHABET, min_size=1, max_size=orders.SKU_LENGTH_MAX)
idempotency_keys = (
    st.text(KEY_ALPHABET, min_size=1, max_size=orders.KEY_LENGTH_MAX)
    | uuids.map(str)
    | uuids.map(lambda value: str(value).upper())
)
currencies = st.text(string.ascii_uppercase, min_size=3, max_size=3)

lines = st.builds(
    orders.OrderLine,
    sku_index=u8,
    sku=skus,
    quantity=st.integers(1, orders.QUANTITY_MAX),
    unit_price_minor=u40,
)
entries = st.builds(
    orders.OrderEntry,
    order_id=uuids,
    user_id=uuids,
    sale_id=uuids,
    idempotency_key=idempotency_keys,
    currency=currencies,
    lines=st.lists(lines, min_size=1, max_size=orders.LINES_MAX).map(tuple),
    status=st.sampled_from(orders.OrderStatus),
    version=u16,
    epoch=u32,
    reserved_at_ms=u48,
    expires_at_ms=u48,
    changed_at_ms=u48,
)

sale_items = st.builds(
    sales.SaleItem,
    sku=skus,
    unit_price_minor=st.integers(0, sales.PRICE_MAX),
    per_user_limit=st.integers(0, sales.PER_USER_LIMIT_MAX),
)
definitions = st.builds(
    sales.SaleDefinition,
    sale_id=uuids,
    name=st.text(max_size=50),
    epoch=u32,
    version=u32,
    state=st.sampled_from(sales.LaneSaleState),
    starts_at_ms=u64,
    ends_at_ms=u64,
    hold_ms=u32,
    currency=currencies,
    lanes=st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True).map(tuple),
    items=st.lists(sale_items, min_size=1, max_size=5).map(tuple),
)
