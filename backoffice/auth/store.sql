-- name: change_password
-- Primary key of users. Compare-and-set on the old hash: the second of two concurrent changes finds no row.
UPDATE users SET password_hash = %(new_hash)s, changed_at = now()
WHERE id = %(user_id)s AND password_hash = %(old_hash)s
RETURNING id;

-- name: renew_hash
-- Primary key of users. The same password with newer parameters. Compare-and-set: a changed password stays.
UPDATE users SET password_hash = %(new_hash)s WHERE id = %(user_id)s AND password_hash = %(old_hash)s
RETURNING id;

-- name: look_at_token
-- Primary keys. Reads only. The hash proves the token. A token for a former address of the account is invalid.
SELECT link.used_at IS NOT NULL AS used, link.expires_at <= now() AS expired
FROM mailed_links AS link
JOIN users ON users.id = link.user_id AND users.email_folded = link.email_folded
WHERE link.user_id = %(user_id)s AND link.purpose = %(purpose)s AND link.secret_hash = %(secret_hash)s;

-- name: look_at_undo
-- Primary keys. Reads only. As `look_at_token`, for a token of the address that the account has left.
SELECT link.used_at IS NOT NULL AS used, link.expires_at <= now() AS expired, link.email_folded
FROM mailed_links AS link
WHERE link.user_id = %(user_id)s AND link.purpose = %(purpose)s AND link.secret_hash = %(secret_hash)s;

-- name: reset_password
-- Primary keys. Locks the account first and the token second, as every transaction that locks both. The token also
-- proves the address that it was mailed to. Concurrent resets wait for one another here, and `use_token` lets only one
-- of them commit.
UPDATE users SET password_hash = %(new_hash)s, verified_email_folded = users.email_folded, changed_at = now(),
    version = version + (verified_email_folded IS DISTINCT FROM users.email_folded)::integer
FROM mailed_links AS link
WHERE users.id = %(user_id)s AND link.user_id = users.id AND link.email_folded = users.email_folded
  AND link.purpose = %(purpose)s AND link.secret_hash = %(secret_hash)s
RETURNING users.email_folded;

-- name: verify_address
-- Primary keys; locks as `reset_password`.
UPDATE users SET verified_email_folded = users.email_folded,
    version = version + (verified_email_folded IS DISTINCT FROM users.email_folded)::integer
FROM mailed_links AS link
WHERE users.id = %(user_id)s AND link.user_id = users.id AND link.email_folded = users.email_folded
  AND link.purpose = %(purpose)s AND link.secret_hash = %(secret_hash)s
RETURNING users.email_folded;

-- name: use_token
-- Primary key. Compare-and-set: of concurrent uses one finds a row, and the other transactions roll back.
UPDATE mailed_links SET used_at = now()
WHERE user_id = %(user_id)s AND purpose = %(purpose)s AND secret_hash = %(secret_hash)s
  AND used_at IS NULL AND expires_at > now()
RETURNING notice_id;

-- name: void_tokens
-- Primary key. Void the unused tokens of a user and purpose: a used token voids the others, and a changed password
-- voids the resets that were requested before.
UPDATE mailed_links SET used_at = now()
WHERE user_id = %(user_id)s AND purpose = %(purpose)s AND used_at IS NULL;

-- name: void_newer_tokens
-- Primary key. Void the undos of later changes: the addresses since then may be those of a thief.
UPDATE mailed_links SET used_at = now()
WHERE user_id = %(user_id)s AND purpose = %(purpose)s AND used_at IS NULL AND notice_id > %(notice_id)s;

-- name: lock_password
-- Primary key of users. After an undone change of the address: a person who knew the password made that change. No
-- password has this hash. The token proves the address.
UPDATE users SET password_hash = '!', verified_email_folded = email_folded, changed_at = now(), version = version + 1
WHERE id = %(user_id)s;
