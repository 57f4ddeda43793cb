-- Reads of a rebuild, and its records in the catalogue and the shards.

-- name: read_sale
-- The sale with its items and restocks at one moment: a restock raises the ledger in one transaction with its row.
-- Changes nothing. Index: primary keys.
SELECT s.name, s.stage, s.paused, s.ended, s.epoch, s.version, s.starts_at, s.ends_at, s.hold_seconds, s.currency, s.lanes,
    (
        SELECT json_agg(json_build_array(i.sku, i.price_minor, i.per_user_limit, l.stock) ORDER BY i.sku_index)
        FROM sale_items i
        JOIN stock_ledger l USING (sale_id, sku)
        WHERE i.sale_id = s.id
    ),
    (
        SELECT coalesce(json_agg(json_build_array(r.idempotency_key, r.sku_index, r.quantity)), '[]')
        FROM restocks r
        WHERE r.sale_id = s.id
    )
FROM sales s
WHERE s.id = %(sale_id)s;

-- name: try_lock
-- One rebuild of a sale at a time; the lock ends with the session.
SELECT pg_try_advisory_lock(hashtextextended('rebuild ' || %(sale_id)s::uuid, 0));

-- name: moving_buckets
-- Whether a group of buckets is on its way between shards. Changes nothing. At most one row.
SELECT EXISTS (SELECT FROM bucket_group);

-- name: read_stage
-- The stage that the rebuild of an epoch reached. Changes nothing. Index: rebuilds_pkey.
SELECT stage FROM rebuilds WHERE sale_id = %(sale_id)s AND epoch = %(epoch)s;

-- name: raise_epoch
-- Compare-and-set on the epoch: of two rebuilds, one gets a row. Index: sales_pkey.
WITH raised AS (
    UPDATE sales SET epoch = epoch + 1, loaded_epoch = epoch + 1, version = version + 1, changed_at = now()
    WHERE id = %(sale_id)s AND epoch = %(epoch)s AND stage = 'published'
    RETURNING id, epoch
)
INSERT INTO rebuilds (sale_id, epoch) SELECT id, epoch FROM raised
RETURNING epoch;

-- name: set_stage
-- Repeating it changes nothing but the time. Index: rebuilds_pkey.
UPDATE rebuilds SET stage = %(stage)s, changed_at = now() WHERE sale_id = %(sale_id)s AND epoch = %(epoch)s;

-- name: mark_restocked
-- Marks restocks as applied; the first time stays. Repeating it changes nothing. Index: restocks_pkey.
UPDATE restocks SET applied_at = coalesce(applied_at, now())
WHERE sale_id = %(sale_id)s AND idempotency_key = ANY(%(keys)s);

-- name: read_losses
-- Losses of lanes that are not settled. Changes nothing. Index: lane_losses_pkey.
SELECT l.lane, l.found_seq, l.floor_seq, coalesce(w.verified_seq, 0)
FROM lane_losses l
LEFT JOIN lane_watermark w USING (lane)
WHERE l.lane = ANY(%(lanes)s::smallint[]) AND l.settled_at IS NULL
ORDER BY l.lane, l.found_seq;

-- name: note_lost
-- Repeating it changes nothing. Index: lost_entries_pkey.
INSERT INTO lost_entries (lane, first_seq, last_seq)
SELECT %(lane)s, first_seq, last_seq FROM unnest(%(firsts)s::bigint[], %(lasts)s::bigint[]) AS g (first_seq, last_seq)
ON CONFLICT (lane, first_seq) DO NOTHING;

-- name: settle_loss
-- In one transaction with note_lost. Index: lane_losses_pkey.
UPDATE lane_losses SET settled_at = now()
WHERE lane = %(lane)s AND found_seq = %(found)s AND floor_seq = %(floor)s AND settled_at IS NULL;

-- name: read_given_up
-- Places of a lane in (after, upto] whose dead letters were deleted. Changes nothing. Index: given_up_entries_pkey.
SELECT lane_seq FROM given_up_entries WHERE lane = %(lane)s AND lane_seq > %(after)s AND lane_seq <= %(upto)s;

-- name: read_lost
-- All ranges that lanes ever lost. Changes nothing. Index: lost_entries_pkey.
SELECT lane, first_seq, last_seq, noted_at FROM lost_entries WHERE lane = ANY(%(lanes)s::smallint[]) ORDER BY lane, first_seq;

-- name: holds
-- Whether the sale has reserved orders. Changes nothing. Index: orders_due, which has reserved orders only.
SELECT EXISTS (SELECT FROM orders WHERE status = 0 AND sale_id = %(sale_id)s);

-- name: read_fence
-- The newest fence that a writer took off this shard's queue. Changes nothing. Index: sale_epochs_pkey.
SELECT fence FROM sale_epochs WHERE sale_id = %(sale_id)s;

-- name: make_quotas
-- Makes a row to lock for every SKU. Repeating it changes nothing. Index: quota_pkey.
INSERT INTO quota (sale_id, sku)
SELECT %(sale_id)s, sku FROM unnest(%(skus)s::text[]) AS w (sku) ORDER BY sku
ON CONFLICT (sale_id, sku) DO NOTHING;

-- name: lock_quotas
-- Locks in the writers' order, so that none of their transactions for this sale runs while the gate closes.
-- Index: quota_pkey.
SELECT 1 FROM quota WHERE sale_id = %(sale_id)s AND sku = ANY(%(skus)s::text[]) ORDER BY sale_id, sku FOR UPDATE;

-- name: close_gate
-- Never lowers the epoch. Repeating it changes nothing. Index: sale_epochs_pkey.
INSERT INTO sale_epochs AS e (sale_id, epoch) VALUES (%(sale_id)s, %(epoch)s)
ON CONFLICT (sale_id) DO UPDATE SET epoch = excluded.epoch WHERE excluded.epoch > e.epoch;

-- name: read_orders
-- Every order of the sale in this shard, sorted by user. Changes nothing. Index: orders_one_per_key, or a sort.
SELECT id, user_id, idempotency_key, status, version, currency, lines, reserved_at, expires_at, changed_at
FROM orders
WHERE sale_id = %(sale_id)s
ORDER BY user_id, id;

-- name: read_payments
-- Orders of the sale with a payment. Changes nothing. Reads the whole table, as `read_orders` does: a rebuild is rare.
SELECT DISTINCT order_id FROM payments WHERE sale_id = %(sale_id)s;

-- name: read_orders_of_user
-- Like read_orders, for one user. Changes nothing. Index: orders_one_per_key.
SELECT id, user_id, idempotency_key, status, version, currency, lines, reserved_at, expires_at, changed_at
FROM orders
WHERE user_id = %(user_id)s AND sale_id = %(sale_id)s
ORDER BY id;

-- name: read_waiting
-- Entries that waited for a grant and are not stored. Changes nothing. Index: waiting_entries_pkey.
SELECT w.lane, w.lane_seq, w.entry
FROM waiting_entries w
WHERE w.lane = ANY(%(lanes)s::smallint[]) AND NOT EXISTS (SELECT FROM orders o WHERE o.id = w.order_id)
ORDER BY w.lane, w.lane_seq
LIMIT %(limit)s;

-- name: read_places
-- Places of a lane in (after, upto] that this shard accounts for. Changes nothing.
-- Index: order_transitions_lane_seq, repeated_places_pkey, dead_lettered_pkey, waiting_entries_pkey.
SELECT lane_seq FROM order_transitions WHERE lane = %(lane)s AND lane_seq > %(after)s AND lane_seq <= %(upto)s
UNION
SELECT lane_seq FROM repeated_places WHERE lane = %(lane)s AND lane_seq > %(after)s AND lane_seq <= %(upto)s
UNION
SELECT lane_seq FROM dead_lettered WHERE lane = %(lane)s AND lane_seq > %(after)s AND lane_seq <= %(upto)s
UNION
SELECT lane_seq FROM waiting_entries WHERE lane = %(lane)s AND lane_seq > %(after)s AND lane_seq <= %(upto)s;
