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
SELECT token.used_at IS NOT NULL AS used, token.expires_at <= now() AS expired
FROM mailed_tokens AS token
JOIN users ON users.id = token.user_id AND users.email_folded = token.email_folded
WHERE token.user_id = %(user_id)s AND token.purpose = %(purpose)s AND token.secret_hash = %(secret_hash)s;

-- name: reset_password
-- Primary keys. Locks the account first and the token second, as every transaction that locks both. The token also
-- proves the address that it was mailed to. Concurrent resets wait for one another here, and `use_token` lets only one
-- of them commit.
UPDATE users SET password_hash = %(new_hash)s, verified_email_folded = users.email_folded, changed_at = now()
FROM mailed_tokens AS token
WHERE users.id = %(user_id)s AND token.user_id = users.id AND token.email_folded = users.email_folded
  AND token.purpose = %(purpose)s AND token.secret_hash = %(secret_hash)s
RETURNING users.email_folded;

-- name: verify_address
-- Primary keys; locks as `reset_password`.
UPDATE users SET verified_email_folded = users.email_folded
FROM mailed_tokens AS token
WHERE users.id = %(user_id)s AND token.user_id = users.id AND token.email_folded = users.email_folded
  AND token.purpose = %(purpose)s AND token.secret_hash = %(secret_hash)s
RETURNING users.email_folded;

-- name: use_token
-- Primary key. Compare-and-set: of concurrent uses one finds a row, and the other transactions roll back.
UPDATE mailed_tokens SET used_at = now()
WHERE user_id = %(user_id)s AND purpose = %(purpose)s AND secret_hash = %(secret_hash)s
  AND used_at IS NULL AND expires_at > now()
RETURNING user_id;

-- name: void_resets
-- Primary key of mailed_tokens. A changed password voids a reset that was requested before.
UPDATE mailed_tokens SET used_at = now()
WHERE user_id = %(user_id)s AND purpose = 'password_reset' AND used_at IS NULL;

-- name: is_verified
-- Primary key of users. Reads only.
SELECT coalesce(verified_email_folded = email_folded, false) FROM users WHERE id = %(user_id)s;
