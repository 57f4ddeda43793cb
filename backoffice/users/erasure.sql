-- name: get_erasure
-- Primary key. Reads only.
SELECT finished_at IS NOT NULL AS finished FROM erasures WHERE user_id = %(id)s;

-- name: finish_erasure
-- Primary key. Repeating keeps the time of the first end. Not while a release is noted: another process may have noted
-- one.
UPDATE erasures SET finished_at = coalesce(finished_at, now())
WHERE user_id = %(id)s AND NOT EXISTS (SELECT 1 FROM login_releases WHERE login_releases.user_id = %(id)s);

-- name: unfinished_erasures
-- Index erasures_unfinished. Reads only.
SELECT user_id FROM erasures WHERE finished_at IS NULL AND erased_at < now() - %(settled)s::interval
ORDER BY erased_at LIMIT %(limit)s;
