-- name: wait_at_most
-- For the transaction. Less than a request's time.
SET LOCAL lock_timeout = '5s';

-- name: lock
-- For the transaction; works through a pooler.
SELECT pg_advisory_xact_lock(%(lock_id)s);
