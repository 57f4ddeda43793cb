-- name: get_preferences
-- Primary keys of users and notice_preferences. Reads only. No row: no account.
SELECT language, coalesce(email_off, '{}') AS email_off, coalesce(push_off, '{}') AS push_off
FROM users LEFT JOIN notice_preferences ON user_id = id WHERE id = %(user_id)s;

-- name: lock_account
-- Primary key. Changes of what belongs to an account are made one after the other, and not after its erasure.
SELECT id FROM users WHERE id = %(user_id)s FOR NO KEY UPDATE;

-- name: put_preferences
-- Primary key. Repeating writes the same.
INSERT INTO notice_preferences (user_id, language, email_off, push_off)
VALUES (%(user_id)s, %(language)s, %(email_off)s, %(push_off)s)
ON CONFLICT (user_id) DO UPDATE SET
    language = excluded.language, email_off = excluded.email_off, push_off = excluded.push_off, changed_at = now();

-- name: list_subscriptions
-- Unique index push_subscriptions_once. Reads only. At most as many rows as an account may have.
SELECT id, endpoint, created_at FROM push_subscriptions WHERE user_id = %(user_id)s ORDER BY created_at, id;

-- name: put_subscription
-- Unique index push_subscriptions_once. A browser that subscribes again keeps its row, with its new keys.
INSERT INTO push_subscriptions AS known (id, user_id, endpoint, p256dh, auth)
VALUES (%(id)s, %(user_id)s, %(endpoint)s, %(p256dh)s, %(auth)s)
ON CONFLICT (user_id, endpoint) DO UPDATE SET p256dh = excluded.p256dh, auth = excluded.auth
RETURNING id, endpoint, created_at, id = %(id)s AS is_new;

-- name: drop_oldest_subscriptions
-- Unique index push_subscriptions_once. Deletes all but the newest `kept`. Idempotent.
DELETE FROM push_subscriptions WHERE user_id = %(user_id)s AND id IN (
    SELECT id FROM push_subscriptions WHERE user_id = %(user_id)s ORDER BY created_at DESC, id DESC OFFSET %(kept)s
);

-- name: delete_subscriptions
-- Unique index push_subscriptions_once. Deletes one, or all of the account. Idempotent.
DELETE FROM push_subscriptions
WHERE user_id = %(user_id)s AND (%(endpoint)s::text IS NULL OR endpoint = %(endpoint)s) RETURNING id;
