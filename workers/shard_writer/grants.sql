-- The catalogue's half of the guard. Every transaction that moves `granted` or a grant locks the ledger rows first
-- (lock_ledger), so that the statement after it sees the newest grants.

-- name: lock_ledger
-- Locks the ledger rows of some SKUs, in one order for all. Changes nothing. Index: stock_ledger_pkey.
SELECT 1
FROM stock_ledger l
JOIN unnest(%(sale_ids)s, %(skus)s) AS w (sale_id, sku) USING (sale_id, sku)
ORDER BY l.sale_id, l.sku
FOR UPDATE OF l;

-- name: raise_grants
-- Raises a shard's totals to `need` or as far as stock lasts, and answers the totals with their new sequence.
-- Totals are absolute: repeating it grants nothing more, only the sequence grows. Index: both primary keys.
WITH wanted AS (
    SELECT w.sale_id, w.sku, w.need, l.stock - l.granted AS free, coalesce(g.total, 0) AS total
    FROM unnest(%(sale_ids)s, %(skus)s, %(needs)s) AS w (sale_id, sku, need)
    JOIN stock_ledger l USING (sale_id, sku)
    LEFT JOIN shard_grant g ON g.sale_id = w.sale_id AND g.sku = w.sku AND g.shard = %(shard)s
),
granted AS (
    INSERT INTO shard_grant AS g (sale_id, sku, shard, total, seq)
    SELECT sale_id, sku, %(shard)s, greatest(total, least(need, total + free)), 1
    FROM wanted
    ON CONFLICT (sale_id, sku, shard) DO UPDATE SET total = excluded.total, seq = g.seq + 1
    RETURNING sale_id, sku, total, seq
),
booked AS (
    UPDATE stock_ledger l
    SET granted = l.granted + g.total - w.total
    FROM granted g
    JOIN wanted w USING (sale_id, sku)
    WHERE l.sale_id = g.sale_id AND l.sku = g.sku AND g.total > w.total
)
SELECT sale_id, sku, total, seq FROM granted;

-- name: lower_grants
-- Takes back the units that a shard gave up: its total becomes `granted`, unless a newer grant was made meanwhile.
-- Repeating it changes nothing, because the total is no longer greater. Index: both primary keys.
WITH given_up AS (
    SELECT g.sale_id, g.sku, g.total - w.granted AS units
    FROM unnest(%(sale_ids)s, %(skus)s, %(seqs)s, %(granted)s) AS w (sale_id, sku, seq, granted)
    JOIN shard_grant g USING (sale_id, sku)
    WHERE g.shard = %(shard)s AND g.seq = w.seq AND g.total > w.granted
),
lowered AS (
    UPDATE shard_grant g
    SET total = g.total - u.units
    FROM given_up u
    WHERE g.sale_id = u.sale_id AND g.sku = u.sku AND g.shard = %(shard)s
)
UPDATE stock_ledger l
SET granted = l.granted - u.units
FROM given_up u
WHERE l.sale_id = u.sale_id AND l.sku = u.sku;

-- name: read_grants
-- Every grant of a shard, for the sweep's look at everything. Changes nothing. Index: shard_grant_shard.
SELECT sale_id, sku, total, seq FROM shard_grant WHERE shard = %(shard)s;

-- name: read_live_grants
-- A shard's grants of some sales and of all that are not over for a day. Changes nothing.
-- Index: sales_live, then shard_grant_pkey.
SELECT g.sale_id, g.sku, g.total, g.seq
FROM (
    SELECT id FROM sales WHERE stage <> 'draft' AND ends_at > now() - interval '1 day'
    UNION
    SELECT unnest(%(sale_ids)s)
) AS s (sale_id)
JOIN shard_grant g USING (sale_id)
WHERE g.shard = %(shard)s;
