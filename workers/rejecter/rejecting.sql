-- Read and written by the reconciler's rejecting round.

-- name: forget_stored
-- Removes notes of versions that are stored by now. Repeating it changes nothing. Reads all notes, of which there are
-- hardly ever any. Index: order_transitions_pkey.
DELETE FROM waiting_entries w
USING order_transitions t
WHERE t.order_id = w.order_id AND t.version = w.version;

-- name: read_waiting
-- The notes, oldest place first. Changes nothing. Index: waiting_entries_pkey.
SELECT entry FROM waiting_entries ORDER BY lane, lane_seq LIMIT %(limit)s;

-- name: count_known
-- How many places of a lane in (after, upto] this shard knows: stored, dead-lettered or waiting. Changes nothing.
-- Index: order_transitions_lane_seq, dead_lettered_pkey, waiting_entries_pkey.
SELECT count(*)
FROM (
    SELECT lane_seq FROM order_transitions
    WHERE lane = %(lane)s AND lane_seq > %(after)s AND lane_seq <= %(upto)s
    UNION
    SELECT lane_seq FROM dead_lettered
    WHERE lane = %(lane)s AND lane_seq > %(after)s AND lane_seq <= %(upto)s
    UNION
    SELECT lane_seq FROM waiting_entries
    WHERE lane = %(lane)s AND lane_seq > %(after)s AND lane_seq <= %(upto)s
) AS places;

-- name: read_sold
-- Units that count as sold in this shard, by sale and SKU. Changes nothing. Index: quota_pkey.
SELECT sale_id, sku, sold FROM quota WHERE sale_id = ANY(%(sale_ids)s);

-- name: lock_stock
-- Locks the ledger rows of a sale against new grants and restocks, in one order for everybody. Changes nothing.
-- Index: stock_ledger_pkey.
SELECT 1 FROM stock_ledger WHERE sale_id = %(sale_id)s ORDER BY sku FOR UPDATE;
