-- name: end_sessions
-- Primary key of session_ends. Idempotent: an earlier cutoff changes nothing.
INSERT INTO session_ends (user_id, not_before) VALUES (%(user_id)s, %(not_before)s)
ON CONFLICT (user_id) DO UPDATE SET not_before = greatest(session_ends.not_before, excluded.not_before);

-- name: ends_since
-- Index session_ends_not_before. Reads only, newest first.
SELECT user_id, not_before FROM session_ends WHERE not_before >= %(since)s ORDER BY not_before DESC LIMIT %(limit)s;

-- name: forget_ends
-- Index session_ends_not_before. Idempotent. Every token issued before these cutoffs has expired.
DELETE FROM session_ends WHERE not_before < %(before)s;
