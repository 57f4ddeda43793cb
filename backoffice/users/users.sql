-- name: insert_user
-- Not idempotent: each registration has a new id. No row: the claim of the address is too old.
INSERT INTO users (id, bucket, email, email_folded, name, password_hash, role, verified_email_folded)
SELECT %(id)s, %(bucket)s, %(email)s, %(email_folded)s, %(name)s, %(password_hash)s, %(role)s,
       CASE WHEN %(verified)s THEN %(email_folded)s END
WHERE clock_timestamp() < %(claimed_at)s::timestamptz + %(work)s::interval
RETURNING id, email, name, role, version, created_at,
    coalesce(verified_email_folded = email_folded, false) AS email_verified;

-- name: delete_user
-- Primary key. Idempotent. Undoes a registration that lost its claim.
DELETE FROM users WHERE id = %(id)s;

-- name: get_user
-- Primary key. Reads only.
SELECT id, email, name, role, version, created_at,
       coalesce(verified_email_folded = email_folded, false) AS email_verified
FROM users WHERE id = %(id)s;

-- name: get_account_by_id
-- Primary key. Reads only.
SELECT id, email, name, role, version, created_at, password_hash,
       coalesce(verified_email_folded = email_folded, false) AS email_verified
FROM users WHERE id = %(id)s;

-- name: get_account
-- Primary key. Reads only. No row when the user has another address: the entry of the login index is left over.
SELECT id, email, name, role, version, created_at, password_hash,
       coalesce(verified_email_folded = email_folded, false) AS email_verified
FROM users
WHERE id = %(id)s AND email_folded = %(email_folded)s;

-- name: page
-- Primary key, newest first; for roles other than buyer, index users_of_staff. Reads only.
SELECT id, email, name, role, version, created_at,
       coalesce(verified_email_folded = email_folded, false) AS email_verified
FROM users
WHERE (%(before)s::uuid IS NULL OR id < %(before)s)
  AND (%(role)s::text IS NULL OR role = %(role)s)
ORDER BY id DESC LIMIT %(limit)s;

-- name: change_user
-- Primary key, compare-and-set on the version, so repeating changes nothing. A new address is written only while its
-- claim is young: before `work` has passed, no other process takes the claim over.
UPDATE users SET
    email = coalesce(%(email)s, email),
    email_folded = coalesce(%(email_folded)s, email_folded),
    name = coalesce(%(name)s, name),
    role = coalesce(%(role)s, role),
    version = version + 1,
    changed_at = now()
WHERE id = %(id)s AND version = %(version)s
  AND (%(claimed_at)s::timestamptz IS NULL OR clock_timestamp() < %(claimed_at)s::timestamptz + %(work)s::interval)
RETURNING id, email, name, role, version, created_at,
    coalesce(verified_email_folded = email_folded, false) AS email_verified;

-- name: note_release
-- Primary key of login_releases. Repeating renews the note, so that a worker with the older note does not delete it.
INSERT INTO login_releases (user_id, email_folded) VALUES (%(user_id)s, %(email_folded)s)
ON CONFLICT (user_id, email_folded) DO UPDATE SET noted_at = now()
RETURNING user_id, email_folded, noted_at;

-- name: erase_user
-- Primary key, compare-and-set on the version; repeating finds no row. Tables with personal data reference `users` with
-- ON DELETE CASCADE (a test checks all tables), so their rows are deleted, too. Orders hold no personal data except the
-- user id; they stay.
WITH gone AS (
    DELETE FROM users WHERE id = %(id)s AND version = %(version)s RETURNING id, email_folded
), noted AS (
    INSERT INTO login_releases (user_id, email_folded) SELECT id, email_folded FROM gone
    ON CONFLICT (user_id, email_folded) DO UPDATE SET noted_at = now()
)
INSERT INTO erasures (user_id, erased_by) SELECT id, %(erased_by)s FROM gone
ON CONFLICT (user_id) DO NOTHING
RETURNING user_id;
