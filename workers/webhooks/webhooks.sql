-- Statements of the webhook worker, on the catalogue. One process works at a time, by lease; an overlap is harmless.

-- name: subscriptions
-- Reads at most 50 rows. `owes`: a notice waits to be sent.
SELECT
    id, event_types, enabled, (extract(epoch FROM enabled_at) * 1000)::bigint AS since_ms, notice_id, notify,
    enabled AND coalesce(paused_until, now()) <= now() AND EXISTS (
        SELECT FROM webhook_deliveries WHERE webhook_id = webhooks.id AND state = 'waiting' AND next_at <= now()
    ) AS is_due
FROM webhooks;

-- name: backlogs
-- Index: webhook_deliveries_due. Reads only; each webhook's backlog is bounded.
SELECT webhook_id, count(*) FROM webhook_deliveries
WHERE webhook_id = ANY (%(webhooks)s) AND state = 'waiting' GROUP BY webhook_id;

-- name: add
-- Unique index on webhook and event: an event that is read again adds nothing. A deleted webhook gets nothing.
INSERT INTO webhook_deliveries (id, webhook_id, event_id, event_type, body)
SELECT given.id, given.webhook_id, given.event_id, given.event_type, given.body
FROM unnest(%(ids)s::uuid[], %(webhooks)s::uuid[], %(events)s::text[], %(types)s::text[], %(bodies)s::bytea[])
    AS given (id, webhook_id, event_id, event_type, body)
JOIN webhooks ON webhooks.id = given.webhook_id
ON CONFLICT (webhook_id, event_id) DO NOTHING;

-- name: skip
-- Primary key. Not idempotent: an event that is read again counts again.
UPDATE webhooks SET skipped = skipped + %(events)s WHERE id = %(webhook)s;

-- name: due
-- Index: webhook_deliveries_due, a probe for each webhook. A webhook that fails gets one attempt at a time.
SELECT
    w.id AS webhook_id, w.url, w.salt, CASE WHEN w.previous_until > now() THEN w.previous_salt END AS previous_salt,
    d.id, d.event_id, d.body, d.attempts
FROM webhooks w
CROSS JOIN LATERAL (
    SELECT id, event_id, body, attempts FROM webhook_deliveries
    WHERE webhook_id = w.id AND state = 'waiting' AND next_at <= now() AND id <> ALL (%(taken)s)
    ORDER BY next_at
    LIMIT greatest(
        0,
        CASE WHEN w.failures > 0 THEN 1 ELSE %(at_once)s END
        - coalesce((%(busy)s::jsonb ->> w.id::text)::integer, 0)
    )
) d
WHERE w.enabled AND coalesce(w.paused_until, now()) <= now();

-- name: finish
-- Primary key, and compare-and-set on the number of attempts: an overlapping process changes nothing twice.
UPDATE webhook_deliveries
SET
    state = %(state)s, attempts = attempts + 1, attempted_at = now(), status = %(status)s,
    next_at = CASE WHEN %(state)s = 'waiting' THEN now() + make_interval(secs => %(retry_s)s) END,
    history = %(history)s
WHERE id = %(delivery)s AND attempts = %(attempts)s AND state = 'waiting'
RETURNING id;

-- name: lock
-- Primary key. Before rows of its deliveries, as the deletion of a webhook does: no deadlock. No row: it was deleted.
SELECT id FROM webhooks WHERE id = %(webhook)s FOR NO KEY UPDATE;

-- name: history
-- Earlier attempts of a delivery that waits, locked until its end. Index: webhook_deliveries_pkey.
SELECT history FROM webhook_deliveries WHERE id = %(delivery)s AND attempts = %(attempts)s AND state = 'waiting'
FOR UPDATE;

-- name: succeeded
-- Primary key. Repeating it changes nothing.
UPDATE webhooks SET failures = 0, failing_since = NULL, paused_until = NULL
WHERE id = %(webhook)s AND (failures > 0 OR paused_until IS NOT NULL);

-- name: failed
-- Primary key. In one transaction with `finish`, so each attempt counts once.
UPDATE webhooks
SET
    failures = failures + 1, failing_since = coalesce(failing_since, now()),
    paused_until = CASE
        WHEN %(pause_s)s > 0 THEN greatest(paused_until, now() + make_interval(secs => %(pause_s)s)) ELSE paused_until
    END
WHERE id = %(webhook)s
RETURNING enabled AND failures >= %(failures_min)s AND failing_since <= now() - make_interval(secs => %(failing_s)s);

-- name: disable
-- Primary key. Repeating it changes nothing: the webhook is disabled.
UPDATE webhooks SET enabled = false, disabled_reason = %(reason)s, notice_id = %(notice)s
WHERE id = %(webhook)s AND enabled
RETURNING id;

-- name: noticed
-- Primary key. Repeating it changes nothing.
UPDATE webhooks SET notice_id = NULL WHERE id = %(webhook)s AND notice_id = %(notice)s;

-- name: prune_old
-- Index: webhook_deliveries_log for each webhook; ids are in the order of time. Repeating it deletes the next ones.
DELETE FROM webhook_deliveries WHERE id IN (
    SELECT d.id FROM webhooks w CROSS JOIN LATERAL (
        SELECT id FROM webhook_deliveries WHERE webhook_id = w.id AND id < %(before)s LIMIT %(limit)s
    ) d
);

-- name: prune_surplus
-- Index: webhook_deliveries_log for each webhook. Repeating it deletes the next ones.
DELETE FROM webhook_deliveries WHERE id IN (
    SELECT d.id FROM webhooks w CROSS JOIN LATERAL (
        SELECT id FROM webhook_deliveries WHERE webhook_id = w.id AND state <> 'waiting'
        ORDER BY id DESC OFFSET %(rows_max)s LIMIT %(limit)s
    ) d
);
