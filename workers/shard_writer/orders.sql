-- The shard writer's transaction. Order: enter_buckets, lock_quotas, read_stored; then the writes that follow from
-- their answers.

-- name: enter_buckets
-- Enters the buckets of the batch until the end of the transaction; those of them that are closed. Changes nothing.
-- Index: closed_buckets_pkey.
SELECT bucket, state, shard FROM enter_buckets(%(buckets)s);

-- name: make_quotas
-- Makes a quota row, without a grant, for SKUs that the shard meets for the first time. Repeating it changes
-- nothing. Index: quota_pkey.
INSERT INTO quota (sale_id, sku)
SELECT w.sale_id, w.sku
FROM unnest(%(sale_ids)s, %(skus)s) AS w (sale_id, sku)
ORDER BY w.sale_id, w.sku
ON CONFLICT (sale_id, sku) DO NOTHING;

-- name: lock_quotas
-- Locks the quotas of every SKU of the batch, in one order for all writers: from here on no other writer can change
-- an order of these SKUs. Changes nothing. Index: quota_pkey.
SELECT q.sale_id, q.sku, q.granted, q.seq, q.sold
FROM quota q
JOIN unnest(%(sale_ids)s, %(skus)s) AS w (sale_id, sku) USING (sale_id, sku)
ORDER BY q.sale_id, q.sku
FOR UPDATE OF q;

-- name: read_stored
-- The stored rows of the batch's orders, with their versions. Changes nothing. Index: orders_pkey,
-- order_transitions_pkey.
SELECT o.id, o.version, o.charged, (SELECT array_agg(t.version) FROM order_transitions t WHERE t.order_id = o.id)
FROM orders o
WHERE o.id = ANY(%(ids)s);

-- name: read_epochs
-- Sales of the batch that were rebuilt, with the epoch before which nothing new is charged. Read after lock_quotas: the
-- gate is closed under the same locks. Changes nothing. Index: sale_epochs_pkey.
SELECT sale_id, epoch FROM sale_epochs WHERE sale_id = ANY(%(sale_ids)s) AND epoch > 0;

-- name: read_dead_lettered
-- The places among these that are noted as dead letters: a rebuild counted them as reserved. Changes nothing.
-- Index: dead_lettered_pkey.
SELECT d.lane, d.lane_seq
FROM dead_lettered d
JOIN unnest(%(lane)s, %(lane_seq)s) AS w (lane, lane_seq) USING (lane, lane_seq);

-- name: note_fence
-- A fence message came out of the queue. Repeating it changes nothing but the time. Index: sale_epochs_pkey.
INSERT INTO sale_epochs (sale_id, fence, fenced_at)
VALUES (%(sale_id)s, %(fence)s, now())
ON CONFLICT (sale_id) DO UPDATE SET fence = excluded.fence, fenced_at = excluded.fenced_at;

-- name: adopt_grants
-- Takes over grants that are newer than the ones known here. Repeating it changes nothing. Index: quota_pkey.
UPDATE quota q
SET granted = g.total, seq = g.seq
FROM unnest(%(sale_ids)s, %(skus)s, %(totals)s, %(seqs)s) AS g (sale_id, sku, total, seq)
WHERE q.sale_id = g.sale_id AND q.sku = g.sku AND q.seq < g.seq;

-- name: change_quotas
-- Charges and releases. Not idempotent by itself: it is in one transaction with the order rows whose versions say
-- whether they were charged. The table's CHECK refuses to sell units that are not granted. Index: quota_pkey.
UPDATE quota q
SET sold = q.sold + c.sold, granted = q.granted - c.give_back
FROM unnest(%(sale_ids)s, %(skus)s, %(sold)s, %(give_back)s) AS c (sale_id, sku, sold, give_back)
WHERE q.sale_id = c.sale_id AND q.sku = c.sku;

-- name: store_orders
-- Stores whole orders; an older or equal version changes nothing, so it may be repeated and reordered.
-- Index: orders_pkey finds the row, orders_one_per_key refuses a second order for a key.
INSERT INTO orders AS o (
    id, user_id, sale_id, bucket, idempotency_key, status, version, epoch, currency, total_minor, lines,
    reserved_at, expires_at, changed_at, lane, charged
)
SELECT *
FROM unnest(
    %(id)s, %(user_id)s, %(sale_id)s, %(bucket)s, %(idempotency_key)s, %(status)s, %(version)s, %(epoch)s,
    %(currency)s, %(total_minor)s, %(lines)s, %(reserved_at)s, %(expires_at)s, %(changed_at)s, %(lane)s, %(charged)s
)
ON CONFLICT (id) DO UPDATE SET
    status = excluded.status,
    version = excluded.version,
    epoch = excluded.epoch,
    expires_at = excluded.expires_at,
    changed_at = excluded.changed_at,
    charged = excluded.charged
WHERE excluded.version > o.version;

-- name: store_transitions
-- Notes each version with its place in its lane, once. Repeating it changes nothing. Index: order_transitions_pkey.
INSERT INTO order_transitions (order_id, version, status, at, lane, lane_seq)
SELECT *
FROM unnest(%(order_id)s, %(version)s, %(status)s, %(at)s, %(lane)s, %(lane_seq)s)
ON CONFLICT (order_id, version) DO NOTHING;

-- name: store_repeated
-- Notes entries of versions that were stored from another place: their own place is accounted for as well. A redelivery
-- from the same place leaves no row. Runs after store_transitions. Repeating it changes nothing.
-- Index: order_transitions_pkey, repeated_places_pkey.
INSERT INTO repeated_places (lane, lane_seq, order_id, version, sale_id, epoch, status)
SELECT w.lane, w.lane_seq, w.order_id, w.version, w.sale_id, w.epoch, w.status
FROM unnest(
    %(lane)s, %(lane_seq)s, %(order_id)s, %(version)s, %(sale_id)s, %(epoch)s, %(status)s
) AS w (lane, lane_seq, order_id, version, sale_id, epoch, status)
JOIN order_transitions t USING (order_id, version)
WHERE (t.lane, t.lane_seq) <> (w.lane, w.lane_seq)
ON CONFLICT DO NOTHING;

-- name: store_outbox
-- Events of the versions that were seen for the first time. Not idempotent by itself: it is in one transaction with
-- their transitions. No index but the key.
INSERT INTO outbox (destination, partition, events)
SELECT %(destination)s, *
FROM unnest(%(partition)s, %(events)s);

-- name: note_dead_lettered
-- Notes valid orders that become dead letters. A valid order replaces the note of a malformed message at its place.
-- Repeating it changes nothing. Index: dead_lettered_pkey.
INSERT INTO dead_lettered AS d (lane, lane_seq, reason, identity, order_id, sale_id, entry)
SELECT w.lane, w.lane_seq, %(reason)s, %(identity)s, w.order_id, w.sale_id, w.entry
FROM unnest(%(lane)s, %(lane_seq)s, %(order_id)s, %(sale_id)s, %(entry)s) AS w (lane, lane_seq, order_id, sale_id, entry)
ON CONFLICT (lane, lane_seq) DO UPDATE SET
    reason = excluded.reason,
    identity = excluded.identity,
    was_seen = false,
    at = now(),
    order_id = excluded.order_id,
    sale_id = excluded.sale_id,
    entry = excluded.entry
WHERE d.entry IS NULL OR excluded.entry IS NOT NULL;

-- name: note_undecodable
-- Notes the places that entries without a valid order claim. Repeating it changes nothing. Index: dead_lettered_pkey.
INSERT INTO dead_lettered (lane, lane_seq, reason, identity)
SELECT w.lane, w.lane_seq, %(reason)s, %(identity)s
FROM unnest(%(lane)s, %(lane_seq)s) AS w (lane, lane_seq)
ON CONFLICT (lane, lane_seq) DO NOTHING;

-- name: note_waiting
-- Notes entries of orders that have waited long for a grant. Repeating it changes nothing. Index: waiting_entries_pkey.
INSERT INTO waiting_entries (lane, lane_seq, order_id, version, entry)
SELECT *
FROM unnest(%(lane)s, %(lane_seq)s, %(order_id)s, %(version)s, %(entry)s)
ON CONFLICT (lane, lane_seq) DO NOTHING;

-- name: read_quotas
-- Every quota of the shard, for the sweep's look at everything. Changes nothing. Reads the whole table: a row per SKU
-- ever sold.
SELECT sale_id, sku, granted, seq, sold FROM quota;

-- name: read_quotas_of
-- The quotas of some sales, for the sweep. Changes nothing. Index: quota_pkey.
SELECT sale_id, sku, granted, seq, sold FROM quota WHERE sale_id = ANY(%(sale_ids)s);

-- name: give_up_idle
-- Gives up unused granted units, if nothing moved since they were read. Repeating it changes nothing.
-- Index: quota_pkey.
UPDATE quota q
SET granted = q.sold
FROM unnest(%(sale_ids)s, %(skus)s, %(seqs)s, %(sold)s, %(granted)s) AS w (sale_id, sku, seq, sold, granted)
WHERE q.sale_id = w.sale_id AND q.sku = w.sku AND q.seq = w.seq AND q.sold = w.sold AND q.granted = w.granted
RETURNING q.sale_id, q.sku, q.granted, q.seq;
