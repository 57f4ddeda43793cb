-- name: claim_address
-- Primary key of login_index. Repeating renews the claim of the same user. No row: the entry is another user's.
INSERT INTO login_index (email_folded, user_id, bucket) VALUES (%(email_folded)s, %(user_id)s, %(bucket)s)
ON CONFLICT (email_folded) DO UPDATE SET confirmed = false, claimed_at = now()
WHERE login_index.user_id = excluded.user_id
RETURNING claimed_at;

-- name: get_entry
-- Primary key of login_index. Reads only.
SELECT user_id, confirmed, claimed_at, claimed_at < now() - %(stale)s::interval AS stale
FROM login_index WHERE email_folded = %(email_folded)s;

-- name: take_over
-- Primary key, compare-and-set on the whole entry: an entry that was claimed or confirmed since the read stays.
UPDATE login_index SET user_id = %(user_id)s, confirmed = false, claimed_at = now()
WHERE email_folded = %(email_folded)s AND user_id = %(from)s
  AND confirmed = %(confirmed)s AND claimed_at = %(claimed_at)s
RETURNING claimed_at;

-- name: confirm
-- Primary key. No row: the entry is another user's. Idempotent.
UPDATE login_index SET confirmed = true WHERE email_folded = %(email_folded)s AND user_id = %(user_id)s
RETURNING user_id;

-- name: release
-- Primary key, compare-and-set on the whole entry: an entry that was claimed since the read stays.
DELETE FROM login_index
WHERE email_folded = %(email_folded)s AND user_id = %(user_id)s
  AND confirmed = %(confirmed)s AND claimed_at = %(claimed_at)s
RETURNING user_id;

-- name: stale_claims
-- Index login_index_unconfirmed. Reads only.
SELECT email_folded, user_id FROM login_index
WHERE NOT confirmed AND claimed_at < now() - %(stale)s::interval
ORDER BY claimed_at LIMIT %(limit)s;

-- name: holder
-- Primary keys of users and erasures. Reads only. Always one row: the address, null without an account, and whether it
-- was erased.
SELECT (SELECT email_folded FROM users WHERE id = %(user_id)s) AS email_folded,
       EXISTS (SELECT 1 FROM erasures WHERE erasures.user_id = %(user_id)s) AS erased;

-- name: releases
-- Index login_releases_noted. Reads only.
SELECT user_id, email_folded, noted_at FROM login_releases
WHERE noted_at < now() - %(settled)s::interval ORDER BY noted_at LIMIT %(limit)s;

-- name: releases_of_user
-- Primary key of login_releases. Reads only.
SELECT user_id, email_folded, noted_at FROM login_releases WHERE user_id = %(user_id)s;

-- name: forget_release
-- Primary key of login_releases, compare-and-set on the time: a newer note stays.
DELETE FROM login_releases
WHERE user_id = %(user_id)s AND email_folded = %(email_folded)s AND noted_at = %(noted_at)s;
