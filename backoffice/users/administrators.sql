-- name: limit_lock_wait
-- For this transaction. Shorter than the time limit of a handler.
SET LOCAL lock_timeout = '5s';

-- name: lock
-- For this transaction, so it works through a pooler.
SELECT pg_advisory_xact_lock(%(lock_id)s);

-- name: count_admins
-- Index users_of_staff. Reads only.
SELECT count(*) FROM users WHERE role = 'admin' AND id IS DISTINCT FROM %(besides)s::uuid;
