-- The rows of payments and refunds in one shard. All statements of a method are in one transaction.

-- name: read_orders
-- The stored orders that some payments are for. Changes nothing. Index: orders_pkey.
SELECT id, user_id, sale_id, total_minor, currency, status FROM orders WHERE id = ANY(%(order_ids)s::uuid[]);

-- name: claim
-- Stores payments that may pay their orders: the first one of each order may. Those of the same order, and events that
-- are known, are left out. Repeating it changes nothing. Rows are inserted in one order, so that two transactions
-- cannot deadlock. Returns the events stored now. Index: payments_pkey, payments_settling.
INSERT INTO payments (
    event_id, order_id, user_id, sale_id, provider, reference, amount_minor, currency, state, settles
)
SELECT w.event_id, w.order_id, w.user_id, w.sale_id, %(provider)s, w.reference, w.amount_minor, w.currency, 'received', true
FROM unnest(
    %(event_id)s::text[], %(order_id)s::uuid[], %(user_id)s::uuid[], %(sale_id)s::uuid[], %(reference)s::text[],
    %(amount_minor)s::bigint[], %(currency)s::text[]
) AS w (event_id, order_id, user_id, sale_id, reference, amount_minor, currency)
ORDER BY w.order_id, w.event_id
ON CONFLICT DO NOTHING
RETURNING event_id;

-- name: receive_due
-- Stores payments that cannot pay their orders. Events that are known, those of `claim` among them, are left out.
-- Repeating it changes nothing. Returns the events stored now. Index: payments_pkey.
INSERT INTO payments (
    event_id, order_id, user_id, sale_id, provider, reference, amount_minor, currency, state, settles, due_minor
)
SELECT
    w.event_id, w.order_id, w.user_id, w.sale_id, %(provider)s, w.reference, w.amount_minor, w.currency, 'refund_due',
    false, w.amount_minor
FROM unnest(
    %(event_id)s::text[], %(order_id)s::uuid[], %(user_id)s::uuid[], %(sale_id)s::uuid[], %(reference)s::text[],
    %(amount_minor)s::bigint[], %(currency)s::text[]
) AS w (event_id, order_id, user_id, sale_id, reference, amount_minor, currency)
ORDER BY w.order_id, w.event_id
ON CONFLICT (event_id) DO NOTHING
RETURNING event_id;

-- name: read_payments
-- Payments by event. Changes nothing. Index: payments_pkey.
SELECT event_id, order_id, user_id, sale_id, reference, amount_minor, currency, state, settles, due_minor, refunded_minor
FROM payments
WHERE event_id = ANY(%(event_ids)s::text[]);

-- name: payments_of_orders
-- The payments of some orders, for their buyer. Changes nothing. Index: payments_of_order.
SELECT order_id, state, due_minor, refunded_minor
FROM payments
WHERE order_id = ANY(%(order_ids)s::uuid[]);

-- name: capture
-- Received payments that paid their orders, with their events in the outbox. Repeating it changes nothing: only
-- payments that change now are told. `durable` is `off` where the commit need not wait for the disk. The test of the
-- state has a form that no partial index fits: payments_received is full of dead entries. Index: payments_pkey.
WITH commit AS (
    SELECT set_config('synchronous_commit', %(durable)s, true)
),
changed AS (
    UPDATE payments
    SET state = 'captured', changed_at = now()
    WHERE event_id = ANY(%(event_id)s::text[]) AND (state = 'received') IS TRUE
    RETURNING event_id
)
INSERT INTO outbox (destination, partition, events)
SELECT %(destination)s, w.partition, jsonb_agg(w.event)
FROM unnest(%(event_id)s::text[], %(partition)s::smallint[], %(event)s::jsonb[]) AS w (event_id, partition, event)
JOIN changed USING (event_id)
CROSS JOIN commit
GROUP BY w.partition;

-- name: give_back
-- Payments that did not pay their orders after all: the whole amount is due back. Not for an order that is stored as
-- paid, which no other payment can have paid: Redis has lost that, and a rebuild brings it back. Repeating it changes
-- nothing. Returns the events changed now. Index: payments_pkey, orders_pkey.
UPDATE payments
SET state = 'refund_due', due_minor = amount_minor, changed_at = now()
WHERE event_id = ANY(%(event_ids)s::text[])
    AND (state = 'received' OR (state = 'captured' AND NOT confirmed AND due_minor + refunded_minor = 0))
    AND NOT EXISTS (SELECT FROM orders o WHERE o.id = payments.order_id AND o.status = 1)
RETURNING event_id;

-- name: count_unknown
-- Payments that wait for an order that is not known, counted up to a limit. Changes nothing. Index: payments_received.
SELECT count(*)
FROM (SELECT FROM payments WHERE state = 'received' AND sale_id = %(unknown)s LIMIT %(limit)s) AS w;

-- name: adopt
-- Payments whose orders have become known: each may pay its order, or goes back when it does not fit. Repeating it
-- changes nothing. Returns the events changed now. Index: payments_pkey.
UPDATE payments p
SET
    user_id = w.user_id,
    sale_id = w.sale_id,
    state = CASE WHEN w.fits THEN p.state ELSE 'refund_due' END,
    settles = w.fits,
    due_minor = CASE WHEN w.fits THEN 0 ELSE p.amount_minor END,
    changed_at = now()
FROM unnest(%(event_id)s::text[], %(user_id)s::uuid[], %(sale_id)s::uuid[], %(fits)s::boolean[])
    AS w (event_id, user_id, sale_id, fits)
WHERE p.event_id = w.event_id AND p.state = 'received' AND p.sale_id = %(unknown)s
RETURNING p.event_id;

-- name: give_back_unknown
-- Payments whose orders did not become known: the whole amount is due back. Repeating it changes nothing. Returns the
-- events changed now. Index: payments_pkey.
UPDATE payments
SET state = 'refund_due', due_minor = amount_minor, changed_at = now()
WHERE event_id = ANY(%(event_ids)s::text[]) AND state = 'received' AND sale_id = %(unknown)s
RETURNING event_id;

-- name: add_refunds
-- One refund of the whole amount for each payment that has just become `refund_due`. Repeating it changes nothing.
-- Index: refunds_once.
INSERT INTO refunds (id, event_id, order_id, amount_minor, currency, reason)
SELECT *
FROM unnest(
    %(id)s::uuid[], %(event_id)s::text[], %(order_id)s::uuid[], %(amount_minor)s::bigint[], %(currency)s::text[],
    %(reason)s::text[]
)
ON CONFLICT (event_id) WHERE reason <> 'staff' DO NOTHING;

-- name: store_outbox
-- Events and refunds to tell. Not idempotent by itself: it is in one transaction with the change that it tells.
INSERT INTO outbox (destination, partition, events)
SELECT *
FROM unnest(%(destination)s::text[], %(partition)s::smallint[], %(events)s::jsonb[]);

-- name: open_work
-- Everything of a shard that is not finished, in one statement: whether payments are received and not settled, and
-- whether captured ones wait for their stored orders; of the refunds that are not done the number, the age of the
-- oldest in seconds, and how many the provider refused. Changes nothing. Index: payments_received,
-- payments_unconfirmed, refunds_open.
SELECT
    EXISTS (SELECT FROM payments WHERE state = 'received'),
    EXISTS (SELECT FROM payments WHERE state = 'captured' AND NOT confirmed),
    count(*),
    coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8,
    count(*) FILTER (WHERE state = 'refused')
FROM refunds
WHERE state <> 'done';

-- name: received_before
-- Payments with an interrupted settling. Changes nothing. Index: payments_received.
SELECT event_id, order_id, user_id, sale_id, reference, amount_minor, currency, state, settles, due_minor, refunded_minor
FROM payments
WHERE state = 'received' AND received_at < clock_timestamp() - %(age)s AND event_id <> ALL(%(but)s::text[])
ORDER BY received_at
LIMIT %(limit)s;

-- name: confirm
-- Captured payments of orders that are stored as paid. Repeating it changes nothing. Index: payments_unconfirmed.
UPDATE payments p
SET confirmed = true
FROM (
    SELECT event_id, order_id
    FROM payments
    WHERE state = 'captured' AND NOT confirmed
    ORDER BY changed_at
    LIMIT %(limit)s
) AS w
JOIN orders o ON o.id = w.order_id AND o.status = 1
WHERE p.event_id = w.event_id;

-- name: unconfirmed_before
-- Captured payments of orders that are not stored as paid for long. Changes nothing. Index: payments_unconfirmed.
SELECT event_id, order_id, user_id, sale_id, reference, amount_minor, currency, state, settles, due_minor, refunded_minor
FROM payments
WHERE state = 'captured'
    AND NOT confirmed
    AND changed_at < clock_timestamp() - %(age)s
    AND event_id <> ALL(%(but)s::text[])
ORDER BY changed_at
LIMIT %(limit)s;
