-- name: insert_family
-- Not idempotent: each login has a new id. Primary key of users. No row when the hash changed after it was verified.
-- The lock waits for a concurrent change, so no login with the old password or the old role survives that change.
WITH account AS (
    SELECT id, role FROM users WHERE id = %(user_id)s AND password_hash = %(password_hash)s FOR SHARE
), made AS (
    INSERT INTO refresh_families (id, user_id, expires_at) SELECT %(family_id)s, id, now() + %(life)s FROM account
)
SELECT role, extract(epoch FROM now())::bigint AS logged_in_s FROM account;

-- name: lock_account
-- Primary key. As in insert_family: a change of the role waits for this lock, or is visible after it.
SELECT role FROM users WHERE id = %(user_id)s FOR SHARE;

-- name: generation
-- Primary key of session_ends. A separate statement, so that it sees commits made while the previous one waited for its
-- lock. An end of the sessions waits for that lock as well.
SELECT greatest(generation, not_before * 1000) AS generation FROM session_ends WHERE user_id = %(user_id)s;

-- name: insert_token
-- Not idempotent: each token has a new id.
INSERT INTO refresh_tokens (id, family_id, secret_hash) VALUES (%(id)s, %(family_id)s, %(secret_hash)s);

-- name: lock_token
-- Primary keys. Locks the row of the family, so that uses of its tokens are serial.
SELECT family.id AS family_id, family.user_id, token.secret_hash,
       extract(epoch FROM family.created_at)::bigint AS logged_in_s,
       family.revoked_at IS NOT NULL AS revoked,
       family.expires_at <= now() AS expired,
       coalesce(token.used_at < now() - %(grace)s, false) AS used_long_ago
FROM refresh_tokens AS token
JOIN refresh_families AS family ON family.id = token.family_id
WHERE token.id = %(id)s
FOR UPDATE OF family;

-- name: count_unused
-- For a token that was used before: the unused tokens of its family that were made within the grace. 0 at a first use.
-- Reads only. Primary key, and for a token used again index refresh_tokens_family: a family that is refreshed every 15
-- minutes has some thousand rows at its end.
SELECT count(*) FROM refresh_tokens AS token
JOIN refresh_tokens AS sibling ON sibling.family_id = token.family_id
WHERE token.id = %(id)s AND token.used_at IS NOT NULL
  AND sibling.used_at IS NULL AND sibling.created_at > now() - %(grace)s;

-- name: drop_old
-- Index refresh_tokens_family. Deletes all but the newest `kept`: ids begin with their time.
DELETE FROM refresh_tokens WHERE family_id = %(family_id)s AND id <= (
    SELECT id FROM refresh_tokens WHERE family_id = %(family_id)s ORDER BY id DESC OFFSET %(kept)s LIMIT 1
);

-- name: mark_used
-- Primary key. Repeating keeps the time of the first use.
UPDATE refresh_tokens SET used_at = coalesce(used_at, now()) WHERE id = %(id)s;

-- name: revoke_family
-- Primary key. Repeating keeps the time of the first revocation.
UPDATE refresh_families SET revoked_at = coalesce(revoked_at, now()) WHERE id = %(family_id)s;

-- name: revoke_families
-- Index refresh_families_user. Repeating keeps the time of the first revocation.
UPDATE refresh_families SET revoked_at = now() WHERE user_id = %(user_id)s AND revoked_at IS NULL;

-- name: delete_old
-- Index refresh_families_user. A login deletes expired families of its user, and all but the newest `kept`.
DELETE FROM refresh_families WHERE user_id = %(user_id)s AND (expires_at <= now() OR id <= (
    SELECT id FROM refresh_families WHERE user_id = %(user_id)s ORDER BY id DESC OFFSET %(kept)s LIMIT 1
));
