-- name: find_address
-- Primary key of login_index. Reads only. The account shows a left-over entry: it has another address.
SELECT user_id FROM login_index WHERE email_folded = %(email_folded)s;

-- name: recipient
-- Primary key of users. Reads only.
SELECT id AS user_id, email, email_folded, coalesce(verified_email_folded = email_folded, false) AS verified
FROM users WHERE id = %(user_id)s;

-- name: issue_token
-- Primary keys. One token a user and purpose: the new one voids the one before. Repeating for the same notice writes
-- the same, and never makes a used token valid again. No row: a newer notice has a token, or the account or its
-- address is gone.
INSERT INTO mailed_tokens (user_id, purpose, notice_id, secret_hash, email_folded, expires_at)
SELECT id, %(purpose)s, %(notice_id)s, %(secret_hash)s, email_folded, now() + %(life)s
FROM users WHERE id = %(user_id)s AND email_folded = %(email_folded)s
ON CONFLICT (user_id, purpose) DO UPDATE SET
    notice_id = excluded.notice_id, secret_hash = excluded.secret_hash, email_folded = excluded.email_folded,
    expires_at = excluded.expires_at, used_at = NULL
WHERE mailed_tokens.notice_id < excluded.notice_id
   OR (mailed_tokens.notice_id = excluded.notice_id AND mailed_tokens.used_at IS NULL)
RETURNING user_id;
