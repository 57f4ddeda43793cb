-- name: products_of
-- Unique index on the SKU. FOR SHARE: no product is deleted or deactivated until the transaction ends.
SELECT sku, currency, active FROM products WHERE sku = ANY(%(skus)s) FOR SHARE;

-- name: insert_sale
-- Unique index on caller and idempotency key. No row: the key has created a sale before.
INSERT INTO sales (id, name, starts_at, ends_at, hold_seconds, currency, lane_count, lanes_auto,
                   expected_buyers, idempotency_key, fingerprint, created_by)
VALUES (%(id)s, %(name)s, %(starts_at)s, %(ends_at)s, %(hold_seconds)s, %(currency)s, %(lane_count)s,
        %(lanes_auto)s, %(expected_buyers)s, %(idempotency_key)s, %(fingerprint)s, %(created_by)s)
ON CONFLICT (created_by, idempotency_key) DO NOTHING
RETURNING id;

-- name: find_key
-- Unique index on caller and idempotency key.
SELECT id, fingerprint FROM sales WHERE created_by = %(created_by)s AND idempotency_key = %(idempotency_key)s;

-- name: insert_items
-- In the transaction that created the sale or deleted its items.
INSERT INTO sale_items (sale_id, sku_index, sku, stock, price_minor, per_user_limit)
SELECT %(sale_id)s, place - 1, sku, stock, price_minor, per_user_limit
FROM unnest(%(skus)s::text[], %(stocks)s::int[], %(prices)s::bigint[], %(limits)s::int[])
     WITH ORDINALITY AS item (sku, stock, price_minor, per_user_limit, place);

-- name: delete_items
-- First column of the primary key. Only for a draft, after a change of its row in the same transaction.
DELETE FROM sale_items WHERE sale_id = %(sale_id)s;

-- name: get
-- Primary keys of both tables.
SELECT sales.id, name, stage, paused, ended, starts_at, ends_at, hold_seconds, currency, lane_count,
       lanes_auto, expected_buyers, lanes, epoch, version,
       (SELECT json_agg(json_build_object('sku', sku, 'stock', stock, 'price_minor', price_minor,
                                          'per_user_limit', per_user_limit) ORDER BY sku_index)
        FROM sale_items WHERE sale_id = sales.id) AS items
FROM sales WHERE id = %(id)s;

-- name: lock
-- Primary key. Requests that change one sale queue here, so that none of them loses to the others.
SELECT 1 FROM sales WHERE id = %(id)s FOR UPDATE;

-- name: page
-- Primary keys of both tables, newest first.
SELECT sales.id, name, stage, paused, ended, starts_at, ends_at, hold_seconds, currency, lane_count,
       lanes_auto, expected_buyers, lanes, epoch, version,
       (SELECT json_agg(json_build_object('sku', sku, 'stock', stock, 'price_minor', price_minor,
                                          'per_user_limit', per_user_limit) ORDER BY sku_index)
        FROM sale_items WHERE sale_id = sales.id) AS items
FROM sales
WHERE %(before)s::uuid IS NULL OR id < %(before)s
ORDER BY id DESC LIMIT %(limit)s;

-- name: live
-- Index sales_live. Sales that edges must know; some time after the end as well, to answer that the sale has ended.
SELECT id, stage, epoch, version, changed_at < now() - %(settled)s AS settled
FROM sales
WHERE stage <> 'draft' AND ends_at > now() - %(kept)s
ORDER BY ends_at LIMIT %(limit)s;

-- name: change_draft
-- Primary key, compare-and-set on the version.
UPDATE sales SET name = %(name)s, starts_at = %(starts_at)s, ends_at = %(ends_at)s, hold_seconds = %(hold_seconds)s,
                 currency = %(currency)s, lane_count = %(lane_count)s, lanes_auto = %(lanes_auto)s,
                 expected_buyers = %(expected_buyers)s, version = version + 1, changed_at = now()
WHERE id = %(id)s AND stage = 'draft' AND version = %(version)s
RETURNING id;

-- name: delete_draft
-- Primary key. No row: there is no such draft. In one transaction with `delete_items`, after `lock`.
DELETE FROM sales WHERE id = %(id)s AND stage = 'draft'
RETURNING id;

-- name: start_loading
-- Primary key, compare-and-set on the version: one of two publishers gets a row, the other continues at stage loading.
UPDATE sales SET stage = 'loading', loaded_epoch = epoch, lanes = %(lanes)s, changed_at = now()
WHERE id = %(id)s AND stage = 'draft' AND version = %(version)s
RETURNING id;

-- name: fill_ledger
-- In the transaction of start_loading, hence once per sale.
INSERT INTO stock_ledger (sale_id, sku, stock) SELECT sale_id, sku, stock FROM sale_items WHERE sale_id = %(id)s;

-- name: mark_published
-- Primary key; repeating changes nothing.
UPDATE sales SET stage = 'published', changed_at = now() WHERE id = %(id)s AND stage = 'loading';

-- name: change_published
-- Primary key, compare-and-set on the version.
UPDATE sales SET name = %(name)s, starts_at = %(starts_at)s, ends_at = %(ends_at)s, paused = %(paused)s, ended = %(ended)s,
                 version = version + 1, changed_at = now()
WHERE id = %(id)s AND stage = 'published' AND version = %(version)s
RETURNING id;

-- name: find_restock
-- Primary key.
SELECT sku, quantity, applied_at IS NOT NULL AS applied FROM restocks
WHERE sale_id = %(sale_id)s AND idempotency_key = %(key)s;

-- name: insert_restock
-- Primary key. No row: the key was used before, and the ledger must not be raised again.
INSERT INTO restocks (sale_id, idempotency_key, sku, sku_index, quantity, created_by)
VALUES (%(sale_id)s, %(key)s, %(sku)s, %(sku_index)s, %(quantity)s, %(created_by)s)
ON CONFLICT (sale_id, idempotency_key) DO NOTHING
RETURNING sale_id;

-- name: raise_ledger
-- Primary key, in the transaction of insert_restock. No row: the stock would exceed the range of the counters.
UPDATE stock_ledger SET stock = stock + %(quantity)s
WHERE sale_id = %(sale_id)s AND sku = %(sku)s AND stock <= %(stock_max)s - %(quantity)s
RETURNING stock;

-- name: mark_restocked
-- Primary key; repeating keeps the first time.
UPDATE restocks SET applied_at = coalesce(applied_at, now()) WHERE sale_id = %(sale_id)s AND idempotency_key = %(key)s;

-- name: unapplied_restocks
-- Index restocks_unapplied. Leaves out restocks that a request may still be working on.
SELECT sale_id, idempotency_key, sku_index, quantity FROM restocks
WHERE applied_at IS NULL AND created_at < now() - %(settled)s
ORDER BY created_at LIMIT %(limit)s;

-- name: restocked_units
-- First column of the primary key.
SELECT sku_index, sum(quantity)::bigint FROM restocks WHERE sale_id = %(sale_id)s GROUP BY sku_index;

-- name: sold_units
-- In a shard. First column of the primary key.
SELECT sku, sold FROM quota WHERE sale_id = %(sale_id)s;
