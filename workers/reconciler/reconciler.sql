-- Statements of the reconciler. Every block is one statement, so it sees one snapshot.

-- name: count_range
-- Number of places of a lane in (after, upto] that this shard accounts for. Changes nothing.
-- Index: order_transitions_lane_seq, dead_lettered_pkey.
SELECT count(*)
FROM (
    SELECT lane_seq FROM order_transitions
    WHERE lane = %(lane)s AND lane_seq > %(after)s AND lane_seq <= %(upto)s
    UNION
    SELECT lane_seq FROM dead_lettered
    WHERE lane = %(lane)s AND lane_seq > %(after)s AND lane_seq <= %(upto)s
) AS places;

-- name: note_dead_lettered
-- Notes entries that the relay dead-lettered: they belong to no shard, so the first shard accounts for them.
-- Repeating it changes nothing. Index: dead_lettered_pkey.
INSERT INTO dead_lettered (lane, lane_seq, reason)
SELECT %(lane)s, w.lane_seq, %(reason)s
FROM unnest(%(lane_seqs)s::bigint[]) AS w (lane_seq)
ON CONFLICT (lane, lane_seq) DO NOTHING;

-- name: count_dead_lettered
-- Number of entries of these lanes in the dead letters. Changes nothing. Index: dead_lettered_pkey.
SELECT count(*) FROM dead_lettered WHERE lane = ANY(%(lanes)s::smallint[]);

-- name: read_units
-- Per SKU: units of stored reserved and paid orders beside the shard's quota. Changes nothing. Reads all orders.
WITH held AS (
    SELECT o.sale_id, line ->> 'sku' AS sku, sum((line ->> 'quantity')::bigint) AS units
    FROM orders o
    CROSS JOIN LATERAL jsonb_array_elements(o.lines) AS line
    WHERE o.status IN (0, 1)
    GROUP BY o.sale_id, line ->> 'sku'
)
SELECT
    coalesce(h.sale_id, q.sale_id),
    coalesce(h.sku, q.sku),
    coalesce(h.units, 0)::bigint,
    coalesce(q.granted, 0),
    coalesce(q.seq, 0),
    coalesce(q.sold, 0)
FROM held h
FULL JOIN quota q ON q.sale_id = h.sale_id AND q.sku = h.sku;

-- name: count_strays
-- Per lane: versions with a missing or older order row, and order rows without a noted version. The two
-- tables are written in one transaction, so there are none. Changes nothing. Reads both tables.
SELECT t.lane, count(*), 0::bigint
FROM order_transitions t
LEFT JOIN orders o ON o.id = t.order_id
WHERE o.id IS NULL OR o.version < t.version
GROUP BY t.lane
UNION ALL
SELECT o.lane, 0::bigint, count(*)
FROM orders o
LEFT JOIN order_transitions t ON t.order_id = o.id AND t.version = o.version
WHERE t.order_id IS NULL
GROUP BY o.lane;

-- name: read_ledger
-- Ledger and grants of some sales. Changes nothing. Index: both primary keys.
SELECT l.sale_id, l.sku, l.stock, l.granted, coalesce(g.shard, -1), coalesce(g.total, 0), coalesce(g.seq, 0)
FROM stock_ledger l
LEFT JOIN shard_grant g USING (sale_id, sku)
WHERE l.sale_id = ANY(%(sale_ids)s);

-- name: count_lost
-- Number of places of a lane in (after, upto] recorded as lost by a rebuild. Changes nothing. Index: lost_entries_pkey.
SELECT coalesce(sum(least(last_seq, %(upto)s) - greatest(first_seq, %(after)s + 1) + 1), 0)::bigint
FROM lost_entries
WHERE lane = %(lane)s AND first_seq <= %(upto)s AND last_seq > %(after)s;

-- name: read_lost
-- All losses ever, a few ranges. Changes nothing. No index needed.
SELECT lane, first_seq, last_seq, (extract(epoch FROM noted_at) * 1000)::bigint FROM lost_entries ORDER BY lane, first_seq;

-- name: read_unknown_tails
-- Lanes that went back while they may have been taking orders. Changes nothing. No index needed: a few rows.
SELECT lane, floor_seq, (extract(epoch FROM noticed_at) * 1000)::bigint FROM lane_losses WHERE NOT was_quiet
ORDER BY lane, floor_seq;

-- name: read_watermarks
-- How far each lane was proved to be stored. Changes nothing. Index: lane_watermark_pkey.
SELECT lane, verified_seq FROM lane_watermark;

-- name: raise_watermark
-- Raises a watermark, never lowers it. Repeating it changes nothing but the time. Index: lane_watermark_pkey.
INSERT INTO lane_watermark AS w (lane, verified_seq)
VALUES (%(lane)s, %(verified_seq)s)
ON CONFLICT (lane) DO UPDATE SET verified_seq = excluded.verified_seq, verified_at = now()
WHERE excluded.verified_seq > w.verified_seq;
