-- name: find_address
-- Primary key of login_index. Reads only. The account shows a left-over entry: it has another address.
SELECT user_id FROM login_index WHERE email_folded = %(email_folded)s;

-- name: language
-- Primary key of notice_preferences. Reads only.
SELECT language FROM notice_preferences WHERE user_id = %(user_id)s;

-- name: recipient
-- Primary keys of users and notice_preferences. Reads only.
SELECT id AS user_id, email, email_folded, coalesce(verified_email_folded = email_folded, false) AS verified,
       language, coalesce(%(kind)s = ANY (email_off), false) AS muted
FROM users LEFT JOIN notice_preferences ON user_id = id WHERE id = %(user_id)s;

-- name: issue_token
-- Primary keys. One token a notice; those of other notices stay valid until one of them is used. Repeating for the same
-- notice writes the same, and never makes a used token valid again. No row: a newer token was used or voided, or the
-- account is gone, or it has another address, which only a letter to a former address allows.
INSERT INTO mailed_links AS known (user_id, purpose, notice_id, secret_hash, email_folded, expires_at)
SELECT id, %(purpose)s, %(notice_id)s, %(secret_hash)s, %(email_folded)s, now() + %(life)s
FROM users WHERE id = %(user_id)s AND (email_folded = %(email_folded)s OR %(purpose)s = 'email_changed')
  AND NOT EXISTS (
    SELECT 1 FROM mailed_links AS newer
    WHERE newer.user_id = %(user_id)s AND newer.purpose = %(purpose)s
      AND newer.notice_id > %(notice_id)s AND newer.used_at IS NOT NULL
  )
ON CONFLICT (user_id, purpose, notice_id) DO UPDATE SET
    secret_hash = excluded.secret_hash, expires_at = excluded.expires_at
WHERE known.used_at IS NULL
RETURNING user_id;

-- name: drop_old_tokens
-- Primary key. Deletes all but the newest `kept` tokens of a user and purpose, and those that expired long ago: an
-- expired token is told apart from an unknown one for a while. Notice ids begin with their time.
DELETE FROM mailed_links WHERE user_id = %(user_id)s AND purpose = %(purpose)s
  AND (expires_at < now() - interval '7 days' OR notice_id <= (
    SELECT notice_id FROM mailed_links WHERE user_id = %(user_id)s AND purpose = %(purpose)s
    ORDER BY notice_id DESC OFFSET %(kept)s LIMIT 1
  ));
