-- Statements of the rejecter.

-- name: any_waiting
-- Whether there are notes at all: usually not. Reads only.
SELECT EXISTS (SELECT FROM waiting_entries);

-- name: forget_stored
-- Removes notes of versions that are stored by now. Repeating it changes nothing. Reads all notes, usually none.
-- Index: order_transitions_pkey.
DELETE FROM waiting_entries w
USING order_transitions t
WHERE t.order_id = w.order_id AND t.version = w.version;

-- name: read_waiting
-- The waiting orders of one status at their newest noted version, oldest place first: `status` is the second byte of an
-- entry (`domain.orders`). The bound is for those that can be rejected: paid ones wait for a restock, perhaps for days,
-- and take no place. A damaged entry without a second byte is of no status. Changes nothing. Reads all notes, usually
-- none.
SELECT entry
FROM (
    SELECT DISTINCT ON (order_id) lane, lane_seq, entry FROM waiting_entries ORDER BY order_id, version DESC
) AS newest
WHERE CASE WHEN length(entry) > 1 THEN get_byte(entry, 1) END = %(status)s
ORDER BY lane, lane_seq
LIMIT %(limit)s;

-- name: count_waiting
-- Number of waiting orders by their newest noted status. Changes nothing. Reads all notes, usually none.
SELECT CASE WHEN length(entry) > 1 THEN get_byte(entry, 1) ELSE -1 END, count(*)
FROM (SELECT DISTINCT ON (order_id) entry FROM waiting_entries ORDER BY order_id, version DESC) AS newest
GROUP BY 1;

-- name: read_known
-- Places of a lane in (after, upto] that this shard knows: stored, dead-lettered or waiting. Each has 4 bytes and is
-- relative to `after`. Changes nothing.
-- Index: order_transitions_lane_seq, repeated_places_pkey, dead_lettered_pkey, waiting_entries_pkey.
SELECT coalesce(string_agg(int4send((lane_seq - %(after)s::bigint)::integer), ''::bytea), ''::bytea)
FROM (
    SELECT lane_seq FROM order_transitions
    WHERE lane = %(lane)s AND lane_seq > %(after)s AND lane_seq <= %(upto)s
    UNION ALL
    SELECT lane_seq FROM repeated_places
    WHERE lane = %(lane)s AND lane_seq > %(after)s AND lane_seq <= %(upto)s
    UNION ALL
    SELECT lane_seq FROM dead_lettered
    WHERE lane = %(lane)s AND lane_seq > %(after)s AND lane_seq <= %(upto)s
    UNION ALL
    SELECT lane_seq FROM waiting_entries
    WHERE lane = %(lane)s AND lane_seq > %(after)s AND lane_seq <= %(upto)s
) AS places;

-- name: read_sold
-- Units that count as sold in this shard, by sale and SKU. Changes nothing. Index: quota_pkey.
SELECT sale_id, sku, sold FROM quota WHERE sale_id = ANY(%(sale_ids)s);

-- name: read_watermarks
-- How far each lane was proved to be stored. Changes nothing. Index: lane_watermark_pkey.
SELECT lane, verified_seq FROM lane_watermark WHERE lane = ANY(%(lanes)s::smallint[]);

-- name: read_stock
-- Units in the ledger, by sale and SKU. Changes nothing. Index: stock_ledger_pkey.
SELECT sale_id, sku, stock FROM stock_ledger WHERE sale_id = ANY(%(sale_ids)s);

-- name: lock_stock
-- Locks the ledger rows of a sale against new grants and restocks, always in the order of SKUs. Changes nothing.
-- Index: stock_ledger_pkey.
SELECT 1 FROM stock_ledger WHERE sale_id = %(sale_id)s ORDER BY sku FOR UPDATE;

-- name: read_switches
-- Odd while rows of buckets may be in two shards; no row before the first move. Changes nothing. One row.
SELECT switches FROM bucket_map;
