-- name: lock_account
-- Primary key. Waits for logins and refreshes that are under way (`refresh.sql`), and they wait for the end of this
-- transaction: they have the generation of before or of after it.
SELECT 1 FROM users WHERE id = %(user_id)s FOR NO KEY UPDATE;

-- name: end_sessions
-- Primary key of session_ends. Not idempotent: each end has a generation of its own, also with a clock that went back.
INSERT INTO session_ends AS known (user_id, not_before, generation)
VALUES (%(user_id)s, %(now_ms)s::bigint / 1000, %(now_ms)s)
ON CONFLICT (user_id) DO UPDATE SET
    not_before = greatest(excluded.generation, known.generation + 1, known.not_before * 1000 + 1) / 1000,
    generation = greatest(excluded.generation, known.generation + 1, known.not_before * 1000 + 1)
RETURNING generation;

-- name: ends_since
-- Index session_ends_not_before. Reads only, newest first.
SELECT user_id, greatest(generation, not_before * 1000) AS generation FROM session_ends
WHERE not_before >= %(since)s ORDER BY not_before DESC LIMIT %(limit)s;

-- name: forget_ends
-- Index session_ends_not_before. Idempotent. Every token of before these ends has expired.
DELETE FROM session_ends WHERE not_before < %(before)s;
