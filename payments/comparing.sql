-- What a comparison with the provider reads in one shard, page by page. Changes nothing.

-- name: payments_since
-- The provider's payments received since a time, oldest first, after a place. Repeatable. Index: payments_time.
SELECT event_id, order_id, amount_minor, currency, received_at
FROM payments
WHERE (received_at, event_id) > (%(at)s, %(after)s) AND provider = %(provider)s
ORDER BY received_at, event_id
LIMIT %(limit)s;

-- name: refunds_done_since
-- The provider's refunds that were done since a time, oldest first, after a place. Repeatable. Index: refunds_time.
SELECT r.id, r.order_id, r.amount_minor, r.currency, r.state, r.created_at, r.changed_at
FROM refunds r
JOIN payments p USING (event_id)
WHERE (r.changed_at, r.id) > (%(at)s, %(after)s) AND r.state = 'done' AND p.provider = %(provider)s
ORDER BY r.changed_at, r.id
LIMIT %(limit)s;

-- name: refunds_open
-- The provider's refunds that are not done, oldest first, after a place. Repeatable. Index: refunds_open.
SELECT r.id, r.order_id, r.amount_minor, r.currency, r.state, r.created_at, r.created_at
FROM refunds r
JOIN payments p USING (event_id)
WHERE (r.created_at, r.id) > (%(at)s, %(after)s) AND r.state <> 'done' AND p.provider = %(provider)s
ORDER BY r.created_at, r.id
LIMIT %(limit)s;

-- name: payments_by_id
-- Payments by event. Repeatable. Index: payments_pkey.
SELECT event_id, order_id, amount_minor, currency, received_at
FROM payments
WHERE event_id = ANY(%(ids)s::text[]) AND provider = %(provider)s;

-- name: refunds_by_id
-- Refunds by id. Repeatable. Index: refunds_pkey.
SELECT r.id, r.order_id, r.amount_minor, r.currency, r.state, r.created_at, r.changed_at
FROM refunds r
JOIN payments p USING (event_id)
WHERE r.id = ANY(%(ids)s::uuid[]) AND p.provider = %(provider)s;
