-- name: insert_user
-- Once per id: registration makes a new id each time. No row: the claim of the address is too old to be sure of it.
INSERT INTO users (id, bucket, email, email_folded, name, password_hash, role)
SELECT %(id)s, %(bucket)s, %(email)s, %(email_folded)s, %(name)s, %(password_hash)s, %(role)s
WHERE clock_timestamp() < %(claimed_at)s::timestamptz + %(work)s::interval
RETURNING id, email, name, role, version, created_at;

-- name: delete_user
-- Primary key; of a registration that lost its claim.
DELETE FROM users WHERE id = %(id)s;

-- name: get_user
-- Primary key.
SELECT id, email, name, role, version, created_at FROM users WHERE id = %(id)s;

-- name: get_account
-- Primary key. No row when the user has another address by now: the entry that led here is left over.
SELECT id, email, name, role, version, created_at, password_hash FROM users
WHERE id = %(id)s AND email_folded = %(email_folded)s;

-- name: page
-- Primary key, newest first; by a role other than buyer, index users_of_staff.
SELECT id, email, name, role, version, created_at FROM users
WHERE (%(before)s::uuid IS NULL OR id < %(before)s)
  AND (%(role)s::text IS NULL OR role = %(role)s)
ORDER BY id DESC LIMIT %(limit)s;

-- name: change_user
-- Primary key, compare-and-set on the version: repeating finds another one and changes nothing. A new address only while its
-- claim is young: no other process takes it over before the margin is over.
UPDATE users SET
    email = coalesce(%(email)s, email),
    email_folded = coalesce(%(email_folded)s, email_folded),
    name = coalesce(%(name)s, name),
    role = coalesce(%(role)s, role),
    version = version + 1,
    changed_at = now()
WHERE id = %(id)s AND version = %(version)s
  AND (%(claimed_at)s::timestamptz IS NULL OR clock_timestamp() < %(claimed_at)s::timestamptz + %(work)s::interval)
RETURNING id, email, name, role, version, created_at;

-- name: note_release
-- Primary key of login_releases. Repeating makes the note newer, so that who works on an older one does not remove it.
INSERT INTO login_releases (user_id, email_folded) VALUES (%(user_id)s, %(email_folded)s)
ON CONFLICT (user_id, email_folded) DO UPDATE SET noted_at = now()
RETURNING user_id, email_folded, noted_at;

-- name: count_admins
-- Index users_of_staff.
SELECT count(*) FROM users WHERE role = 'admin' AND id <> %(besides)s;

-- name: erase_user
-- Primary key, compare-and-set on the version; a second time there is no row. What else this shard has of a user goes with
-- the row: tables that hold anything of a person reference `users` ON DELETE CASCADE (a test looks through all of them).
-- Orders have the user's id and nothing else of the person: they stay, and stay countable.
WITH gone AS (
    DELETE FROM users WHERE id = %(id)s AND version = %(version)s RETURNING id, email_folded
), noted AS (
    INSERT INTO login_releases (user_id, email_folded) SELECT id, email_folded FROM gone
    ON CONFLICT (user_id, email_folded) DO UPDATE SET noted_at = now()
)
INSERT INTO erasures (user_id, erased_by) SELECT id, %(erased_by)s FROM gone
ON CONFLICT (user_id) DO NOTHING
RETURNING user_id;

-- name: get_erasure
-- Primary key.
SELECT finished_at IS NOT NULL AS finished FROM erasures WHERE user_id = %(id)s;

-- name: finish_erasure
-- Primary key. The time of the first end stays. Not while an address is left: another process may have noted one.
UPDATE erasures SET finished_at = coalesce(finished_at, now())
WHERE user_id = %(id)s AND NOT EXISTS (SELECT 1 FROM login_releases WHERE login_releases.user_id = %(id)s);

-- name: unfinished_erasures
-- Index erasures_unfinished.
SELECT user_id FROM erasures WHERE finished_at IS NULL AND erased_at < now() - %(settled)s::interval
ORDER BY erased_at LIMIT %(limit)s;
