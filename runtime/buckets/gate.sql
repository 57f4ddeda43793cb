-- name: enter_bucket
-- Enters a bucket until the end of the transaction; a row if it is closed. Changes nothing. Index: closed_buckets_pkey.
SELECT state, shard FROM enter_buckets(ARRAY[%(bucket)s]::smallint[]);

-- name: read_map
-- The version of the catalogue's map; no row before the first move. Changes nothing. One row.
SELECT version FROM bucket_map;

-- name: read_owners
-- The moved buckets. Changes nothing. Reads the whole table: at most 1024 rows.
SELECT bucket, shard FROM bucket_owner;
