-- name: outbox
-- In a shard. Reads only, so repeating is harmless. Rows up to a bound, and the age of the oldest in seconds.
-- Index: outbox_pkey.
SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(w.created_at)), 0)::float8
FROM (SELECT created_at FROM outbox ORDER BY id LIMIT %(rows_max)s) AS w;
