-- What operations ask of the shards. Reads only.

-- name: outbox
-- Rows waiting (counted up to a bound) and seconds since the oldest of them was written. Repeating it is harmless.
-- Index: outbox_pkey.
SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(w.created_at)), 0)::float8
FROM (SELECT created_at FROM outbox ORDER BY id LIMIT %(rows_max)s) AS w;
