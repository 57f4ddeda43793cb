-- name: subscriptions
-- Unique index push_subscriptions_once, primary key of notice_preferences. Reads only. At most as many rows as an
-- account may have.
SELECT id, endpoint, p256dh, auth, language, coalesce(%(kind)s = ANY (push_off), false) AS muted
FROM push_subscriptions
LEFT JOIN notice_preferences ON notice_preferences.user_id = push_subscriptions.user_id
WHERE push_subscriptions.user_id = %(user_id)s ORDER BY id;

-- name: delete_subscription
-- Primary key. Idempotent. Not when the browser has subscribed again, with new keys, since the push.
DELETE FROM push_subscriptions WHERE id = %(id)s AND p256dh = %(p256dh)s AND auth = %(auth)s;
