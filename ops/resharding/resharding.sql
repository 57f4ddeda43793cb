-- Moves of buckets: the catalogue's part, then a shard's part.

-- name: lock
-- One mover at a time, until the session ends. Changes nothing else.
SELECT pg_try_advisory_lock(%(lock)s);

-- name: read_owners
-- The moved buckets. Changes nothing. Reads the whole table: at most 1024 rows.
SELECT bucket, shard FROM bucket_owner;

-- name: read_map
-- Version and switches; no row before the first move. Changes nothing.
SELECT version, switches FROM bucket_map;

-- name: make_map
-- The map's one row. Repeating it changes nothing.
INSERT INTO bucket_map DEFAULT VALUES ON CONFLICT DO NOTHING;

-- name: read_group
-- The group on its way, no row without one. Changes nothing.
SELECT buckets, source, target, step, token FROM bucket_group;

-- name: open_rebuilds
-- Whether a sale is being rebuilt. Changes nothing. Reads the table: a row for each rebuild ever.
SELECT EXISTS (
    SELECT FROM rebuilds r JOIN sales s ON s.id = r.sale_id AND s.epoch = r.epoch WHERE r.stage <> 'done'
);

-- name: announce
-- A group begins. The primary key refuses a second one.
INSERT INTO bucket_group (buckets, source, target, step, token)
VALUES (%(buckets)s, %(source)s, %(target)s, 'announced', %(token)s);

-- name: take_over
-- This process continues the group of a dead one; the dead one's statements are refused from here on.
UPDATE bucket_group SET token = %(token)s;

-- name: hold_group
-- Locks the group if it is still this process's. No row: another process has taken it over. Primary key.
SELECT step FROM bucket_group WHERE token = %(token)s FOR UPDATE;

-- name: set_step
-- In a transaction with hold_group. Repeating it changes nothing.
UPDATE bucket_group SET step = %(step)s;

-- name: count_switch
-- Opens or closes the time in which rows may be in two shards. In one transaction with the step that does so.
UPDATE bucket_map SET switches = switches + 1;

-- name: raise_version
-- In one transaction with set_owners. Returns the new version.
UPDATE bucket_map SET version = version + 1 RETURNING version;

-- name: set_owners
-- The new owner of a group. In one transaction with hold_group. Index: bucket_owner_pkey.
INSERT INTO bucket_owner AS o (bucket, shard, version)
SELECT b, %(target)s, %(version)s FROM unnest(%(buckets)s::smallint[]) AS b
ON CONFLICT (bucket) DO UPDATE SET shard = excluded.shard, version = excluded.version;

-- name: end_group
-- In a transaction with hold_group. Repeating it changes nothing.
DELETE FROM bucket_group;

-- name: lock_ledger
-- The ledger rows of some SKUs, in the order of every other writer. Changes nothing. Index: stock_ledger_pkey.
SELECT 1
FROM stock_ledger l
JOIN unnest(%(sale_ids)s::uuid[], %(skus)s::text[]) AS w (sale_id, sku) USING (sale_id, sku)
ORDER BY l.sale_id, l.sku
FOR UPDATE OF l;

-- name: take_grants
-- Takes the group's units from the source's totals; the numbers of the grants stay. Not idempotent: in one transaction
-- with the step `switched`. Index: shard_grant_pkey.
UPDATE shard_grant g
SET total = g.total - w.units
FROM unnest(%(sale_ids)s::uuid[], %(skus)s::text[], %(units)s::integer[]) AS w (sale_id, sku, units)
WHERE g.sale_id = w.sale_id AND g.sku = w.sku AND g.shard = %(source)s;

-- name: give_grants
-- Adds them to the target's: the sum stays, so the ledger needs no change. As take_grants.
INSERT INTO shard_grant AS g (sale_id, sku, shard, total, seq)
SELECT w.sale_id, w.sku, %(target)s, w.units, 1
FROM unnest(%(sale_ids)s::uuid[], %(skus)s::text[], %(units)s::integer[]) AS w (sale_id, sku, units)
ON CONFLICT (sale_id, sku, shard) DO UPDATE SET total = g.total + excluded.total;

-- name: own_nothing_else
-- Closes the buckets that other shards own. Nobody writes them here. Repeating it changes nothing.
INSERT INTO closed_buckets (bucket, state, shard)
SELECT * FROM unnest(%(buckets)s::smallint[], array_fill('elsewhere'::text, ARRAY[cardinality(%(buckets)s)]), %(owners)s::smallint[])
ON CONFLICT (bucket) DO NOTHING;

-- name: read_closed
-- The closed buckets of a shard. Changes nothing.
SELECT bucket, state, shard FROM closed_buckets;

-- name: addresses_without_bucket
-- Entries of the login index without their bucket. Changes nothing. Index: login_index_without_bucket.
SELECT email_folded FROM login_index WHERE bucket IS NULL LIMIT %(limit)s;

-- name: fill_buckets
-- Repeating it changes nothing. Index: login_index_pkey.
UPDATE login_index i SET bucket = w.bucket
FROM unnest(%(addresses)s::text[], %(buckets)s::smallint[]) AS w (email_folded, bucket)
WHERE i.email_folded = w.email_folded AND i.bucket IS NULL;

-- name: lock_gate
-- Waits for the transactions that have entered buckets; no other one enters until the commit.
SELECT pg_advisory_xact_lock(27713617581667443);

-- name: freeze
-- Closes the group at its source. Repeating it changes nothing. In a transaction with lock_gate.
INSERT INTO closed_buckets (bucket, state, shard, token)
SELECT b, 'frozen', %(target)s, %(token)s FROM unnest(%(buckets)s::smallint[]) AS b
ON CONFLICT (bucket) DO UPDATE SET token = excluded.token WHERE closed_buckets.state = 'frozen';

-- name: thaw
-- Opens the group at its source again. Repeating it changes nothing.
DELETE FROM closed_buckets WHERE bucket = ANY(%(buckets)s::smallint[]) AND state = 'frozen';

-- name: leave
-- From here on the source sends everything of the group to the target. Repeating it changes nothing.
UPDATE closed_buckets SET state = 'elsewhere', shard = %(target)s, token = NULL, since = now()
WHERE bucket = ANY(%(buckets)s::smallint[]) AND state = 'frozen';

-- name: outbox_position
-- The newest id that the outbox has given out. Changes nothing.
SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_id_seq;

-- name: outbox_passed
-- Whether every row up to an id has been published. Changes nothing. Index: outbox_pkey.
SELECT NOT EXISTS (SELECT FROM outbox WHERE id <= %(position)s);

-- name: arrive
-- Marks the group as on its way to this shard, by this process. An open bucket stays open: the caller checks.
UPDATE closed_buckets SET state = 'arriving', shard = %(source)s, token = %(token)s, since = now()
WHERE bucket = ANY(%(buckets)s::smallint[]) AND state IN ('elsewhere', 'arriving');

-- name: hold_arriving
-- Locks the group's rows if it is still this process's: the rows that come back. Index: closed_buckets_pkey.
SELECT bucket FROM closed_buckets
WHERE bucket = ANY(%(buckets)s::smallint[]) AND state = 'arriving' AND token = %(token)s
ORDER BY bucket
FOR UPDATE;

-- name: open
-- The target takes writes of the group. Repeating it changes nothing.
DELETE FROM closed_buckets WHERE bucket = ANY(%(buckets)s::smallint[]) AND state = 'arriving';

-- name: do_not_arrive
-- After an undone copy. Repeating it changes nothing.
UPDATE closed_buckets SET state = 'elsewhere', token = NULL
WHERE bucket = ANY(%(buckets)s::smallint[]) AND state = 'arriving';

-- name: moving
-- This transaction moves rows: they are not checked and are no news.
SELECT set_config('flashsale.buckets', 'entered', true), set_config('flashsale.moving', 'on', true);

-- name: units
-- The units that the group's orders hold, by sale and SKU. Changes nothing.
-- Index: the one that the mover makes for the time of its work.
SELECT o.sale_id, line ->> 'sku', sum((line ->> 'quantity')::integer)::integer
FROM orders o
CROSS JOIN LATERAL jsonb_array_elements(o.lines) AS line
WHERE o.bucket = ANY(%(buckets)s::smallint[]) AND o.charged
GROUP BY 1, 2
ORDER BY 1, 2;

-- name: make_quotas
-- Repeating it changes nothing. Index: quota_pkey.
INSERT INTO quota (sale_id, sku)
SELECT * FROM unnest(%(sale_ids)s::uuid[], %(skus)s::text[])
ORDER BY 1, 2
ON CONFLICT (sale_id, sku) DO NOTHING;

-- name: lock_quotas
-- As the shard writer, in the same order. Changes nothing. Index: quota_pkey.
SELECT 1
FROM quota q
JOIN unnest(%(sale_ids)s::uuid[], %(skus)s::text[]) AS w (sale_id, sku) USING (sale_id, sku)
ORDER BY q.sale_id, q.sku
FOR UPDATE OF q;

-- name: change_quotas
-- Moves units with their orders: sold and granted together. Not idempotent: in one transaction with the orders' rows.
UPDATE quota q
SET sold = q.sold + w.units * %(sign)s, granted = q.granted + w.units * %(sign)s
FROM unnest(%(sale_ids)s::uuid[], %(skus)s::text[], %(units)s::integer[]) AS w (sale_id, sku, units)
WHERE q.sale_id = w.sale_id AND q.sku = w.sku;

-- name: read_epochs
-- The gates of rebuilt sales. Changes nothing. Reads the whole table: a row for each rebuilt sale.
SELECT sale_id, epoch FROM sale_epochs WHERE epoch > 0;

-- name: raise_epochs
-- An entry that a rebuild excluded is excluded in every shard. Repeating it changes nothing. Index: sale_epochs_pkey.
INSERT INTO sale_epochs AS e (sale_id, epoch)
SELECT * FROM unnest(%(sale_ids)s::uuid[], %(epochs)s::bigint[])
ON CONFLICT (sale_id) DO UPDATE SET epoch = greatest(e.epoch, excluded.epoch);

-- name: count_orders
-- The number of a group's orders, to choose its size. Changes nothing. Index: the mover's.
SELECT bucket, count(*) FROM orders WHERE bucket = ANY(%(buckets)s::smallint[]) GROUP BY bucket;

-- name: holds_anything
-- Whether a database has accounts or orders: a new shard has none. Changes nothing.
SELECT EXISTS (SELECT FROM users) OR EXISTS (SELECT FROM orders) OR EXISTS (SELECT FROM login_index);
