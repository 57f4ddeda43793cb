-- name: end_sessions
-- Primary key of session_ends. An earlier end changes nothing, so it may be repeated.
INSERT INTO session_ends (user_id, not_before) VALUES (%(user_id)s, %(not_before)s)
ON CONFLICT (user_id) DO UPDATE SET not_before = greatest(session_ends.not_before, excluded.not_before);

-- name: ends_since
-- Index session_ends_not_before. Reads only, the newest first.
SELECT user_id, not_before FROM session_ends WHERE not_before >= %(since)s ORDER BY not_before DESC LIMIT %(limit)s;

-- name: forget_ends
-- Index session_ends_not_before. Every token issued before has expired.
DELETE FROM session_ends WHERE not_before < %(before)s;

-- name: get_role
-- Primary key of users. Reads only.
SELECT role FROM users WHERE id = %(user_id)s;
