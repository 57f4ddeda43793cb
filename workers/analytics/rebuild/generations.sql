-- The generations of figures during a rebuild. `figures` is served, `figures_next` is being filled.

-- name: try_lock
-- One rebuild at a time, as long as the session lives. No index.
SELECT pg_try_advisory_lock(%(lock)s);

-- name: freeze
-- All statements of this transaction see one moment: figures and counted changes belong together. Changes nothing.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;

-- name: remove_next
-- Removes a generation that is not complete. Repeating it changes nothing. No index.
DROP SCHEMA IF EXISTS figures_next CASCADE;

-- name: remove_old
-- Removes a generation that was replaced. Repeating it changes nothing. No index.
DROP SCHEMA IF EXISTS figures_old CASCADE;

-- name: make_next
-- Fails if there is a next generation. No index.
SELECT make_generation('figures_next');

-- name: make_days
-- Makes the partitions that the served generation has. Repeating it changes nothing. No index of ours.
SELECT count(make_day('figures_next', day)) FROM (SELECT DISTINCT day FROM days_of('figures') ORDER BY day) AS d;

-- name: keep_seconds
-- Copies the days before a day. Not idempotent by itself: it is in one transaction with make_next.
-- Index: none, partitions of whole days.
INSERT INTO figures_next.seconds SELECT * FROM figures.seconds WHERE at < %(before)s;

-- name: keep_minutes
-- Copies the days before a day. Not idempotent by itself: it is in one transaction with make_next.
-- Index: none, partitions of whole days.
INSERT INTO figures_next.minutes SELECT * FROM figures.minutes WHERE at < %(before)s;

-- name: keep_sku_seconds
-- Copies the days before a day. Not idempotent by itself: it is in one transaction with make_next.
-- Index: none, partitions of whole days.
INSERT INTO figures_next.sku_seconds SELECT * FROM figures.sku_seconds WHERE at < %(before)s;

-- name: keep_pay_times
-- Copies the days before a day. Not idempotent by itself: it is in one transaction with make_next.
-- Index: none, partitions of whole days.
INSERT INTO figures_next.pay_times SELECT * FROM figures.pay_times WHERE at < %(before)s;

-- name: keep_counted
-- As the others. Index: none, partitions of whole days.
INSERT INTO figures_next.counted SELECT * FROM figures.counted WHERE day < %(before)s::date;

-- name: keep_positions
-- Positions in other carriers stay. Not idempotent by itself, as above. Index: none, the table is small.
INSERT INTO figures_next.positions SELECT * FROM figures.positions WHERE carrier <> %(carrier)s;

-- name: count_kept
-- The days before a day that have figures. Changes nothing. Index: none, partitions of whole days.
SELECT count(DISTINCT date_trunc('day', at)) FROM figures.minutes WHERE at < %(before)s;

-- name: read_behind
-- Partitions of the event log in which the next generation has counted less than the served one. A position that the
-- log does not reach any more does not count. Changes nothing. Index: positions_pkey.
SELECT count(*)
FROM figures.positions p
LEFT JOIN figures_next.positions n USING (carrier, topic, partition)
WHERE p.carrier = %(carrier)s AND p.last_offset > coalesce(n.last_offset, -1)
    AND NOT concat_ws('/', topic, partition, p.last_offset) = ANY(%(beyond)s);

-- name: read_positions
-- The positions of the served generation. Changes nothing. Index: positions_pkey.
SELECT topic, partition, last_offset FROM figures.positions WHERE carrier = %(carrier)s;

-- name: read_missing
-- Changes by day that the served generation has counted and the next one has not. Changes nothing. Index: counted_pkey.
SELECT day, count(*)
FROM figures.counted p
WHERE day >= %(since)s::date AND NOT EXISTS (
    SELECT FROM figures_next.counted n WHERE n.id = p.id AND n.change = p.change AND n.day = p.day
)
GROUP BY day ORDER BY day;

-- name: lock_switch
-- Waits until no transaction uses a generation. No index.
SELECT pg_advisory_xact_lock(%(lock)s);

-- name: keep_progress
-- The next generation has counted at least as much as the served one, and has no progress of its own.
-- Not idempotent by itself: it is in one transaction with the switch. Index: none, the table is small.
INSERT INTO figures_next.progress SELECT * FROM figures.progress;

-- name: set_served_aside
-- Fails if there is an old generation. No index.
ALTER SCHEMA figures RENAME TO figures_old;

-- name: serve_next
-- In one transaction with set_served_aside. No index.
ALTER SCHEMA figures_next RENAME TO figures;
