-- name: insert_family
-- Once per login; the id is new each time. Primary key of users. No row when the password was changed since it was verified:
-- the lock waits for a change that is under way, so no login with the old password, or of the old role, outlives it.
WITH account AS (
    SELECT id, role FROM users WHERE id = %(user_id)s AND password_hash = %(password_hash)s FOR SHARE
), made AS (
    INSERT INTO refresh_families (id, user_id, expires_at) SELECT %(family_id)s, id, now() + %(life)s FROM account
)
SELECT role FROM account;

-- name: lock_account
-- Primary key. As with insert_family: a change of the role waits, or is seen.
SELECT role FROM users WHERE id = %(user_id)s FOR SHARE;

-- name: not_before
-- Primary key of session_ends. A statement of its own: it sees what was committed while the one before waited.
SELECT not_before FROM session_ends WHERE user_id = %(user_id)s;

-- name: insert_token
-- Once per token; the id is new each time.
INSERT INTO refresh_tokens (id, family_id, secret_hash) VALUES (%(id)s, %(family_id)s, %(secret_hash)s);

-- name: lock_token
-- Primary keys. The family's row is locked, so that uses of its tokens follow one another.
SELECT family.id AS family_id, family.user_id, token.secret_hash,
       family.revoked_at IS NOT NULL AS revoked,
       family.expires_at <= now() AS expired,
       coalesce(token.used_at < now() - %(grace)s, false) AS used_long_ago
FROM refresh_tokens AS token
JOIN refresh_families AS family ON family.id = token.family_id
WHERE token.id = %(id)s
FOR UPDATE OF family;

-- name: count_unused
-- Of a token that was used before: its family's tokens that were made within the grace and that nobody used yet; 0 of a token
-- that is used for the first time. Reads only. Primary key, and index refresh_tokens_family only for a token used again: a
-- family has some thousand rows at its end, if it was renewed every quarter of an hour.
SELECT count(*) FROM refresh_tokens AS token
JOIN refresh_tokens AS sibling ON sibling.family_id = token.family_id
WHERE token.id = %(id)s AND token.used_at IS NOT NULL
  AND sibling.used_at IS NULL AND sibling.created_at > now() - %(grace)s;

-- name: drop_old
-- Index refresh_tokens_family, the oldest beyond the newest so many: ids begin with their time.
DELETE FROM refresh_tokens WHERE family_id = %(family_id)s AND id <= (
    SELECT id FROM refresh_tokens WHERE family_id = %(family_id)s ORDER BY id DESC OFFSET %(kept)s LIMIT 1
);

-- name: mark_used
-- Primary key. The time of the first use stays.
UPDATE refresh_tokens SET used_at = coalesce(used_at, now()) WHERE id = %(id)s;

-- name: revoke_family
-- Primary key. The time of the first revocation stays.
UPDATE refresh_families SET revoked_at = coalesce(revoked_at, now()) WHERE id = %(family_id)s;

-- name: revoke_families
-- Index refresh_families_user. The time of the first revocation stays.
UPDATE refresh_families SET revoked_at = now() WHERE user_id = %(user_id)s AND revoked_at IS NULL;

-- name: delete_old
-- Index refresh_families_user: a login sweeps what its user's earlier logins left, and ends the oldest beyond so many.
DELETE FROM refresh_families WHERE user_id = %(user_id)s AND (expires_at <= now() OR id <= (
    SELECT id FROM refresh_families WHERE user_id = %(user_id)s ORDER BY id DESC OFFSET %(kept)s LIMIT 1
));
