-- Statements of the reconciler. Every block is one statement, so it sees one snapshot.

-- name: read_places
-- Places of a lane in (after, upto] that this shard has, each as 4 bytes relative to `after`: of stored versions, of
-- versions that were stored from another place, of dead letters. Changes nothing.
-- Index: order_transitions_lane_seq, repeated_places_pkey, dead_lettered_pkey.
SELECT
    (
        SELECT coalesce(string_agg(int4send((lane_seq - %(after)s::bigint)::integer), ''::bytea), ''::bytea)
        FROM order_transitions
        WHERE lane = %(lane)s AND lane_seq > %(after)s AND lane_seq <= %(upto)s
    ),
    (
        SELECT coalesce(string_agg(int4send((lane_seq - %(after)s::bigint)::integer), ''::bytea), ''::bytea)
        FROM repeated_places
        WHERE lane = %(lane)s AND lane_seq > %(after)s AND lane_seq <= %(upto)s
    ),
    (
        SELECT coalesce(string_agg(int4send((lane_seq - %(after)s::bigint)::integer), ''::bytea), ''::bytea)
        FROM dead_lettered
        WHERE lane = %(lane)s AND lane_seq > %(after)s AND lane_seq <= %(upto)s
    );

-- name: note_dead_lettered
-- Notes entries that the relay dead-lettered: they belong to no shard, so the first shard accounts for them.
-- Repeating it changes nothing. Index: dead_lettered_pkey.
INSERT INTO dead_lettered (lane, lane_seq, reason, identity)
SELECT %(lane)s, w.lane_seq, %(reason)s, w.identity
FROM unnest(%(lane_seqs)s::bigint[], %(identities)s::bytea[]) AS w (lane_seq, identity)
ON CONFLICT (lane, lane_seq) DO NOTHING;

-- name: read_quotas
-- The shard's half of the guard for some sales. The first statement of a deep look: it takes the snapshot. Changes
-- nothing. Index: quota_pkey.
SELECT sale_id, sku, granted, seq, sold FROM quota WHERE sale_id = ANY(%(sale_ids)s);

-- name: read_contradictions
-- Versions that arrived again from another place with another status. Changes nothing. Reads repeated_places, which has
-- rows only after a lane went back. Index: order_transitions_pkey.
SELECT r.sale_id, r.order_id, r.version, t.lane_seq, t.status, r.lane_seq, r.status
FROM repeated_places r
JOIN order_transitions t USING (order_id, version)
WHERE r.sale_id = ANY(%(sale_ids)s) AND r.status <> t.status
ORDER BY r.lane, r.lane_seq
LIMIT %(rows_max)s;

-- name: read_refused
-- Valid entries in the dead letters beside the stored version of their order. Changes nothing. Reads dead_lettered.
-- Index: orders_pkey.
SELECT d.entry, o.version, coalesce(o.status IN (0, 1), false)
FROM dead_lettered d
LEFT JOIN orders o ON o.id = d.order_id
WHERE d.sale_id = ANY(%(sale_ids)s)
ORDER BY d.lane, d.lane_seq
LIMIT %(rows_max)s;

-- name: read_unreadable
-- Places of dead letters without a valid order that no stored version has. Changes nothing. Reads dead_lettered.
-- Index: order_transitions_lane_seq.
SELECT d.lane, d.lane_seq
FROM dead_lettered d
WHERE d.entry IS NULL
    AND NOT EXISTS (SELECT FROM order_transitions t WHERE t.lane = d.lane AND t.lane_seq = d.lane_seq)
ORDER BY d.lane, d.lane_seq
LIMIT %(rows_max)s;

-- name: end_of_orders
-- The last order of the next slice; no row if fewer orders follow. Changes nothing. Index: orders_pkey.
SELECT id FROM orders WHERE id > %(after)s ORDER BY id OFFSET %(rows_max)s - 1 LIMIT 1;

-- name: read_units
-- Units of stored reserved and paid orders in a slice, by SKU, and the number of lines that cannot be read. Changes
-- nothing. Index: orders_pkey.
SELECT
    o.sale_id,
    coalesce(line ->> 'sku', ''),
    sum(CASE WHEN line ->> 'quantity' ~ '^[0-9]{1,9}$' THEN (line ->> 'quantity')::bigint ELSE 0 END)::bigint,
    count(*) FILTER (WHERE line ->> 'sku' IS NULL OR (line ->> 'quantity' ~ '^[0-9]{1,9}$') IS NOT TRUE)
FROM orders o
CROSS JOIN LATERAL jsonb_array_elements(o.lines) AS line
WHERE o.id > %(after)s AND o.id <= %(upto)s AND o.status IN (0, 1) AND o.sale_id = ANY(%(sale_ids)s)
GROUP BY 1, 2;

-- name: count_stray_orders
-- Per lane: orders of a slice without a note of their version. The two tables are written in one transaction, so there
-- are none. Changes nothing. Index: orders_pkey, order_transitions_pkey.
SELECT o.lane, count(*)
FROM orders o
LEFT JOIN order_transitions t ON t.order_id = o.id AND t.version = o.version
WHERE o.id > %(after)s AND o.id <= %(upto)s AND t.order_id IS NULL
GROUP BY o.lane;

-- name: end_of_transitions
-- The last order of the next slice of versions; no row if fewer versions follow. Changes nothing.
-- Index: order_transitions_pkey.
SELECT order_id FROM order_transitions WHERE order_id > %(after)s ORDER BY order_id OFFSET %(rows_max)s - 1 LIMIT 1;

-- name: count_stray_transitions
-- Per lane: versions of a slice with a missing or older order row. There are none. Changes nothing.
-- Index: order_transitions_pkey, orders_pkey.
SELECT t.lane, count(*)
FROM order_transitions t
LEFT JOIN orders o ON o.id = t.order_id
WHERE t.order_id > %(after)s AND t.order_id <= %(upto)s AND (o.id IS NULL OR o.version < t.version)
GROUP BY t.lane;

-- name: read_notes
-- A page of the notes of dead letters behind a place: whether the place is stored by now, whether the entry waits for a
-- grant, the newest stored version of its order, and the age of the note. Changes nothing.
-- Index: dead_lettered_pkey, order_transitions_lane_seq, repeated_places_pkey, waiting_entries_pkey, orders_pkey.
SELECT
    d.lane,
    d.lane_seq,
    d.identity,
    d.was_seen,
    d.sale_id,
    d.order_id,
    d.entry,
    EXISTS (SELECT FROM order_transitions t WHERE t.lane = d.lane AND t.lane_seq = d.lane_seq)
    OR EXISTS (SELECT FROM repeated_places r WHERE r.lane = d.lane AND r.lane_seq = d.lane_seq),
    EXISTS (SELECT FROM waiting_entries w WHERE w.lane = d.lane AND w.lane_seq = d.lane_seq),
    coalesce((SELECT o.version FROM orders o WHERE o.id = d.order_id), 0),
    extract(epoch FROM now() - d.at)::float8
FROM dead_lettered d
WHERE (d.lane, d.lane_seq) > (%(lane)s, %(lane_seq)s)
ORDER BY d.lane, d.lane_seq
LIMIT %(rows_max)s;

-- name: mark_seen
-- Notes whose letters exist. Repeating it changes nothing. Index: dead_lettered_pkey.
UPDATE dead_lettered d SET was_seen = true
FROM unnest(%(lanes)s::smallint[], %(lane_seqs)s::bigint[]) AS w (lane, lane_seq)
WHERE d.lane = w.lane AND d.lane_seq = w.lane_seq AND NOT d.was_seen;

-- name: delete_notes
-- Removes notes that are not needed any more, unless the entry died again meanwhile. Repeating it changes nothing.
-- Index: dead_lettered_pkey.
DELETE FROM dead_lettered d
USING unnest(%(lanes)s::smallint[], %(lane_seqs)s::bigint[], %(identities)s::bytea[]) AS w (lane, lane_seq, identity)
WHERE d.lane = w.lane AND d.lane_seq = w.lane_seq AND d.identity IS NOT DISTINCT FROM w.identity;

-- name: read_letters
-- Which of these letters exist, and which were replayed within a day. Changes nothing.
-- Index: dead_letters_identity_key, replayed_letters_identity.
SELECT identity, true FROM dead_letters WHERE identity = ANY(%(identities)s::bytea[])
UNION ALL
SELECT identity, false FROM replayed_letters WHERE identity = ANY(%(identities)s::bytea[]);

-- name: give_up
-- Records places whose letters were deleted. Repeating it changes nothing. Index: given_up_entries_pkey.
INSERT INTO given_up_entries (lane, lane_seq, sale_id, order_id)
SELECT lane, lane_seq, sale_id, order_id
FROM unnest(
    %(lanes)s::smallint[], %(lane_seqs)s::bigint[], %(sale_ids)s::uuid[], %(order_ids)s::uuid[]
) AS w (lane, lane_seq, sale_id, order_id)
ON CONFLICT (lane, lane_seq) DO NOTHING;

-- name: read_given_up
-- For each of these sales: the number of its entries whose letters were deleted, and one of their orders. Changes
-- nothing. Index: given_up_entries_sale.
SELECT sale_id, count(*)::integer, min(order_id::text)::uuid
FROM given_up_entries
WHERE sale_id = ANY(%(sale_ids)s)
GROUP BY sale_id;

-- name: read_ledger
-- Ledger and grants of some sales. Changes nothing. Index: both primary keys.
SELECT l.sale_id, l.sku, l.stock, l.granted, coalesce(g.shard, -1), coalesce(g.total, 0), coalesce(g.seq, 0)
FROM stock_ledger l
LEFT JOIN shard_grant g USING (sale_id, sku)
WHERE l.sale_id = ANY(%(sale_ids)s);

-- name: read_lost_places
-- Ranges of a lane that overlap (after, upto] and cannot be stored any more: recorded as lost by a rebuild, or their
-- dead letters were deleted. Changes nothing. Index: lost_entries_pkey, given_up_entries_pkey.
SELECT first_seq, last_seq FROM lost_entries
WHERE lane = %(lane)s AND first_seq <= %(upto)s AND last_seq > %(after)s
UNION ALL
SELECT lane_seq, lane_seq FROM given_up_entries
WHERE lane = %(lane)s AND lane_seq > %(after)s AND lane_seq <= %(upto)s;

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

-- name: read_switches
-- Odd while rows of buckets may be in two shards; no row before the first move. Changes nothing. One row.
SELECT switches FROM bucket_map;
