-- name: email
-- Primary keys of users and notice_preferences, a probe for each id. Reads only. No row: no account.
SELECT id AS user_id, coalesce(email_off, '{}') AS muted
FROM users LEFT JOIN notice_preferences ON user_id = id WHERE id = ANY (%(user_ids)s);

-- name: has_push
-- Reads one row at most.
SELECT EXISTS (SELECT FROM push_subscriptions);

-- name: push
-- Unique index of push_subscriptions, a probe for each id; primary key of notice_preferences. Reads only. No row: no
-- browser to tell.
SELECT DISTINCT push_subscriptions.user_id, coalesce(push_off, '{}') AS muted
FROM push_subscriptions LEFT JOIN notice_preferences ON notice_preferences.user_id = push_subscriptions.user_id
WHERE push_subscriptions.user_id = ANY (%(user_ids)s);
