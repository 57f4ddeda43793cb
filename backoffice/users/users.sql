-- name: claim_address
-- Primary key of login_index. A claim that was never confirmed is taken over once it is old: its registration crashed.
INSERT INTO login_index (email_folded, user_id) VALUES (%(email_folded)s, %(user_id)s)
ON CONFLICT (email_folded) DO UPDATE SET user_id = excluded.user_id, claimed_at = now()
WHERE NOT login_index.confirmed AND login_index.claimed_at < now() - %(stale)s
RETURNING user_id;

-- name: confirm_address
-- Primary key. No row: another registration has taken the claim over meanwhile. Repeating changes nothing.
UPDATE login_index SET confirmed = true WHERE email_folded = %(email_folded)s AND user_id = %(user_id)s
RETURNING user_id;

-- name: insert_user
-- Once per id: registration makes a new id each time.
INSERT INTO users (id, bucket, email, email_folded, name, password_hash, role)
VALUES (%(id)s, %(bucket)s, %(email)s, %(email_folded)s, %(name)s, %(password_hash)s, %(role)s)
RETURNING id, email, name, password_hash, role, created_at;

-- name: delete_user
-- Primary key; of a registration that lost its claim.
DELETE FROM users WHERE id = %(id)s;

-- name: find_address
-- Primary key of login_index.
SELECT user_id FROM login_index WHERE email_folded = %(email_folded)s AND confirmed;

-- name: get_user
-- Primary key.
SELECT id, email, name, password_hash, role, created_at FROM users WHERE id = %(id)s;
