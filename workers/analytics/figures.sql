-- The transaction of the analytics worker: enter, move_positions, count, add_*, show_progress. Tables without a schema
-- are those of the generation that `enter` names.

-- name: enter
-- Names the generation for this transaction, and keeps a rebuild from replacing the generation meanwhile. Changes
-- nothing. No index.
SELECT set_config('search_path', %(space)s, true), pg_advisory_xact_lock_shared(%(lock)s);

-- name: make_positions
-- Makes the rows of a topic's positions. Repeating it changes nothing. Index: positions_pkey.
INSERT INTO positions (carrier, topic, partition, last_offset)
SELECT %(carrier)s, %(topic)s, partition, -1 FROM generate_series(0, %(partitions)s - 1) AS partition
ON CONFLICT DO NOTHING;

-- name: read_positions
-- The positions of a topic that has been read. Changes nothing. Index: positions_pkey.
SELECT partition, last_offset FROM positions WHERE carrier = %(carrier)s AND topic = %(topic)s AND last_offset >= 0;

-- name: move_positions
-- Moves positions that are where the caller believes them to be. Fewer rows than asked for: another process, or a
-- commit of unknown outcome, has moved them, and the caller rolls back. Index: positions_pkey.
UPDATE positions p
SET last_offset = w.last_offset
FROM unnest(%(partition)s, %(known)s, %(last_offset)s) AS w (partition, known, last_offset)
WHERE p.carrier = %(carrier)s AND p.topic = %(topic)s AND p.partition = w.partition AND p.last_offset = w.known;

-- name: count_changes
-- Marks changes as counted; returns the places of those that were not counted before, each once. Repeating it returns
-- nothing. Index: counted_pkey.
WITH given AS (
    SELECT w.id, w.change, w.day, w.place
    FROM unnest(%(id)s, %(change)s, %(day)s) WITH ORDINALITY AS w (id, change, day, place)
), new AS (
    INSERT INTO counted (id, change, day) SELECT id, change, day::date FROM given
    ON CONFLICT DO NOTHING
    RETURNING id, change
)
SELECT min(g.place) FROM given g JOIN new USING (id, change) GROUP BY id, change;

-- name: add_seconds
-- Adds counts to seconds. Not idempotent by itself: it is in one transaction with count_changes.
-- Index: seconds_pkey.
INSERT INTO seconds AS s (
    sale_id, at, currency, orders, units, orders_minor, paid, paid_units, revenue_minor, cancelled, expired, rejected,
    refunds, refunded_minor
)
SELECT *
FROM unnest(
    %(sale_id)s, %(at)s, %(currency)s, %(orders)s, %(units)s, %(orders_minor)s, %(paid)s, %(paid_units)s,
    %(revenue_minor)s, %(cancelled)s, %(expired)s, %(rejected)s, %(refunds)s, %(refunded_minor)s
)
ON CONFLICT (sale_id, at, currency) DO UPDATE SET
    orders = s.orders + excluded.orders,
    units = s.units + excluded.units,
    orders_minor = s.orders_minor + excluded.orders_minor,
    paid = s.paid + excluded.paid,
    paid_units = s.paid_units + excluded.paid_units,
    revenue_minor = s.revenue_minor + excluded.revenue_minor,
    cancelled = s.cancelled + excluded.cancelled,
    expired = s.expired + excluded.expired,
    rejected = s.rejected + excluded.rejected,
    refunds = s.refunds + excluded.refunds,
    refunded_minor = s.refunded_minor + excluded.refunded_minor;

-- name: add_minutes
-- As add_seconds, for minutes. Index: minutes_pkey.
INSERT INTO minutes AS s (
    sale_id, at, currency, orders, units, orders_minor, paid, paid_units, revenue_minor, cancelled, expired, rejected,
    refunds, refunded_minor
)
SELECT *
FROM unnest(
    %(sale_id)s, %(at)s, %(currency)s, %(orders)s, %(units)s, %(orders_minor)s, %(paid)s, %(paid_units)s,
    %(revenue_minor)s, %(cancelled)s, %(expired)s, %(rejected)s, %(refunds)s, %(refunded_minor)s
)
ON CONFLICT (sale_id, at, currency) DO UPDATE SET
    orders = s.orders + excluded.orders,
    units = s.units + excluded.units,
    orders_minor = s.orders_minor + excluded.orders_minor,
    paid = s.paid + excluded.paid,
    paid_units = s.paid_units + excluded.paid_units,
    revenue_minor = s.revenue_minor + excluded.revenue_minor,
    cancelled = s.cancelled + excluded.cancelled,
    expired = s.expired + excluded.expired,
    rejected = s.rejected + excluded.rejected,
    refunds = s.refunds + excluded.refunds,
    refunded_minor = s.refunded_minor + excluded.refunded_minor;

-- name: add_skus
-- Adds units of SKUs. Not idempotent by itself: it is in one transaction with count_changes. Index: sku_seconds_pkey.
INSERT INTO sku_seconds AS s (sale_id, sku, at, reserved, returned, first_reserved_at, last_reserved_at)
SELECT w.sale_id, w.sku, w.at, w.reserved, w.returned, CASE WHEN w.reserved > 0 THEN w.first_reserved_at END,
    CASE WHEN w.reserved > 0 THEN w.last_reserved_at END
FROM unnest(%(sale_id)s, %(sku)s, %(at)s, %(reserved)s, %(returned)s, %(first_reserved_at)s, %(last_reserved_at)s)
    AS w (sale_id, sku, at, reserved, returned, first_reserved_at, last_reserved_at)
ON CONFLICT (sale_id, sku, at) DO UPDATE SET
    reserved = s.reserved + excluded.reserved,
    returned = s.returned + excluded.returned,
    first_reserved_at = least(s.first_reserved_at, excluded.first_reserved_at),
    last_reserved_at = greatest(s.last_reserved_at, excluded.last_reserved_at);

-- name: add_pay_times
-- Adds to the histogram of times to pay. Not idempotent by itself: it is in one transaction with count_changes.
-- Index: pay_times_pkey.
INSERT INTO pay_times AS s (sale_id, at, step, orders)
SELECT * FROM unnest(%(sale_id)s, %(at)s, %(step)s, %(orders)s)
ON CONFLICT (sale_id, at, step) DO UPDATE SET orders = s.orders + excluded.orders;

-- name: show_progress
-- Notes how far the figures of a topic are. Repeating it changes nothing but the time. Index: progress_pkey.
INSERT INTO progress (topic, as_of, lag_records) VALUES (%(topic)s, %(as_of)s, %(lag_records)s)
ON CONFLICT (topic) DO UPDATE SET as_of = excluded.as_of, lag_records = excluded.lag_records, changed_at = now();

-- name: make_day
-- Makes the partitions of a day. Repeating it changes nothing. No index.
SELECT public.make_day(%(space)s, %(day)s);

-- name: read_days
-- The partitions of a schema, with their table and day. Changes nothing. No index of ours.
SELECT parent, name, day FROM public.days_of(%(space)s);

-- name: read_samples
-- The counts of refusals at the last sample, locked until the end of the transaction: one process at a time adds the
-- differences. Changes nothing. Reads the whole table: a row for each sale that Redis has and each code.
SELECT sale_id, code, orders FROM refused.samples FOR UPDATE;

-- name: add_refusals
-- Adds refused orders to a second. Not idempotent by itself: it is in one transaction with keep_samples.
-- Index: refusals_pkey.
INSERT INTO refused.refusals AS r (sale_id, at, code, orders)
SELECT w.sale_id, %(at)s, w.code, w.orders FROM unnest(%(sale_id)s, %(code)s, %(orders)s) AS w (sale_id, code, orders)
ON CONFLICT (sale_id, at, code) DO UPDATE SET orders = r.orders + excluded.orders;

-- name: keep_samples
-- Keeps the counts of this sample. Repeating it changes nothing. Index: samples_pkey.
INSERT INTO refused.samples (sale_id, code, orders) SELECT * FROM unnest(%(sale_id)s, %(code)s, %(orders)s)
ON CONFLICT (sale_id, code) DO UPDATE SET orders = excluded.orders;

-- name: forget_samples
-- Removes the samples of sales that Redis does not have any more. Repeating it changes nothing. Index: samples_pkey.
DELETE FROM refused.samples WHERE sale_id = ANY(%(sale_ids)s);
