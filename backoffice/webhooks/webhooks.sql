-- name: lock_all
-- Held to the end of the transaction: two creations at once cannot exceed the bound together.
SELECT pg_advisory_xact_lock(hashtext('webhooks'));

-- name: count
-- Reads at most 50 rows.
SELECT count(*) FROM webhooks;

-- name: find_key
-- Unique index on caller and idempotency key.
SELECT id, fingerprint FROM webhooks WHERE created_by = %(created_by)s AND idempotency_key = %(idempotency_key)s;

-- name: insert
-- Primary key. The caller has looked for the key under the lock of `lock_all`.
INSERT INTO webhooks (id, url, description, event_types, salt, notify, created_by, idempotency_key, fingerprint)
VALUES (
    %(id)s, %(url)s, %(description)s, %(event_types)s, %(salt)s, %(created_by)s, %(created_by)s, %(idempotency_key)s,
    %(fingerprint)s
);

-- name: page
-- Primary key. At most 50 rows; each counts its backlog by webhook_deliveries_due. Reads only.
SELECT
    id, url, description, event_types, enabled, disabled_reason, failures, failing_since, paused_until, skipped,
    created_at, salt, CASE WHEN previous_until > now() THEN previous_until END AS previous_until,
    (SELECT count(*) FROM webhook_deliveries WHERE webhook_id = webhooks.id AND state = 'waiting') AS waiting
FROM webhooks
WHERE (%(id)s::uuid IS NULL OR id = %(id)s) AND (%(before)s::uuid IS NULL OR id < %(before)s)
ORDER BY id DESC LIMIT %(limit)s;

-- name: lock
-- Primary key. Before rows of its deliveries, as the worker does.
SELECT enabled, disabled_reason FROM webhooks WHERE id = %(id)s FOR NO KEY UPDATE;

-- name: enable
-- Primary key. Under the lock of `lock`, for a disabled webhook: its events are delivered from now on.
UPDATE webhooks
SET
    enabled = true, enabled_at = clock_timestamp(), disabled_reason = NULL, failures = 0, failing_since = NULL,
    paused_until = NULL, notice_id = NULL, notify = %(by)s
WHERE id = %(id)s;

-- name: disable
-- Primary key. Under the lock of `lock`. Repeating it changes nothing.
UPDATE webhooks SET enabled = false, disabled_reason = 'staff', notice_id = NULL WHERE id = %(id)s;

-- name: rotate
-- Primary key. Not idempotent: each call makes a new secret, and only the last one overlaps.
UPDATE webhooks
SET previous_salt = salt, previous_until = now() + %(overlap)s, salt = %(salt)s
WHERE id = %(id)s
RETURNING previous_until;

-- name: delete
-- Primary key; deliveries go with it (webhook_deliveries_log). Repeating it changes nothing.
DELETE FROM webhooks WHERE id = %(id)s RETURNING url, event_types;

-- name: ping
-- Unique index on webhook and event; each call has a new event.
INSERT INTO webhook_deliveries (id, webhook_id, event_id, event_type, body)
VALUES (%(delivery_id)s, %(id)s, %(event_id)s, %(event_type)s, %(body)s);

-- name: deliveries
-- Index: webhook_deliveries_log. Reads only.
SELECT id, event_id, event_type, state, attempts, status, next_at, attempted_at, created_at, history, body
FROM webhook_deliveries
WHERE
    webhook_id = %(id)s AND (%(delivery_id)s::uuid IS NULL OR id = %(delivery_id)s)
    AND (%(before)s::uuid IS NULL OR id < %(before)s) AND (%(state)s::text IS NULL OR state = %(state)s)
ORDER BY id DESC LIMIT %(limit)s;

-- name: replay
-- Primary key. Repeating it changes nothing but the time of the next attempt. A waiting delivery is tried at once.
UPDATE webhook_deliveries
SET
    next_at = now(), state = 'waiting', attempts = CASE WHEN state = 'waiting' THEN attempts ELSE 0 END
WHERE id = %(delivery_id)s AND webhook_id = %(id)s
RETURNING id;
