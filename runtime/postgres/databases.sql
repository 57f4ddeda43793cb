-- name: flushed
-- Reads only, on a primary: bytes of write-ahead log that are on its disk. They include all earlier commits.
SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn;

-- name: replayed
-- Reads only, on a replica: bytes of write-ahead log that its readers see. NULL on a server that is not a replica.
SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() - '0/0'::pg_lsn END;
