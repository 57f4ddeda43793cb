-- Refunds in one shard. All statements of a method are in one transaction.

-- name: read_refund
-- A refund with its payment. Changes nothing. Index: refunds_pkey, payments_pkey.
SELECT
    r.id, r.event_id, r.order_id, r.amount_minor, r.currency, r.reason, r.state, p.reference, p.user_id, p.sale_id
FROM refunds r
JOIN payments p USING (event_id)
WHERE r.id = %(refund_id)s;

-- name: finish
-- The provider has given the money back. Repeating it changes nothing. Index: refunds_pkey.
UPDATE refunds
SET state = 'done', provider_id = %(provider_id)s, changed_at = now()
WHERE id = %(refund_id)s AND state <> 'done'
RETURNING event_id, amount_minor;

-- name: account
-- The payment's part of `finish`. Not idempotent by itself: it is in one transaction with the refund's change.
-- Index: payments_pkey.
UPDATE payments
SET
    due_minor = due_minor - %(amount_minor)s,
    refunded_minor = refunded_minor + %(amount_minor)s,
    changed_at = now(),
    state = CASE
        WHEN refunded_minor + %(amount_minor)s = amount_minor THEN 'refunded'
        WHEN due_minor + refunded_minor = amount_minor THEN 'refund_due'
        ELSE 'captured'
    END
WHERE event_id = %(event_id)s;

-- name: refuse
-- The provider refuses the refund for good. Repeating it changes nothing. Index: refunds_pkey.
UPDATE refunds SET state = 'refused', changed_at = now() WHERE id = %(refund_id)s AND state = 'due';

-- name: tried
-- Notes that a message of the refund is at work. Repeating it only moves the time. Index: refunds_pkey.
UPDATE refunds SET changed_at = now() WHERE id = %(refund_id)s AND state = 'due';

-- name: forgotten
-- Takes refunds that are due and were not tried for long, oldest first: their messages were lost with the queue. The
-- time that it notes keeps the next round from them. Index: refunds_open, refunds_pkey.
UPDATE refunds
SET changed_at = now()
WHERE id IN (
    SELECT id
    FROM refunds
    WHERE state = 'due' AND changed_at <= clock_timestamp() - %(age)s
    ORDER BY created_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
RETURNING id, order_id;

-- name: lock_payment
-- The payment that pays an order, locked until the end of the transaction, its rest that is neither due nor refunded,
-- and whether the order is stored as paid. Changes nothing. Index: payments_settling, orders_pkey.
SELECT
    event_id, user_id, sale_id, currency, state, amount_minor - due_minor - refunded_minor,
    EXISTS (SELECT FROM orders o WHERE o.id = %(order_id)s AND o.status = 1)
FROM payments
WHERE order_id = %(order_id)s AND settles
FOR UPDATE;

-- name: find_request
-- The refund that an idempotency key was used for. Changes nothing. Index: refunds_one_per_key.
SELECT id, lines, amount_minor, restock FROM refunds WHERE order_id = %(order_id)s AND idempotency_key = %(key)s;

-- name: refunded_lines
-- The lines of an order that were refunded, or are to be. Changes nothing. Index: refunded_lines_pkey.
SELECT sku FROM refunded_lines WHERE order_id = %(order_id)s;

-- name: add_request
-- A refund that staff ask for. Not idempotent by itself: the payment is locked, and the key is looked up before.
INSERT INTO refunds (
    id, event_id, order_id, amount_minor, currency, reason, lines, requested_by, idempotency_key, restock, restock_due
)
VALUES (
    %(id)s, %(event_id)s, %(order_id)s, %(amount_minor)s, %(currency)s, 'staff', %(lines)s, %(requested_by)s, %(key)s,
    %(restock)s, %(restock)s
);

-- name: add_lines
-- The refund's lines. A line that was refunded before is an error. Index: refunded_lines_pkey.
INSERT INTO refunded_lines (order_id, sku, refund_id)
SELECT %(order_id)s, sku, %(refund_id)s
FROM unnest(%(lines)s::text[]) AS sku;

-- name: owe
-- The payment's part of `add_request`. Not idempotent by itself: it is in one transaction with it. Index:
-- payments_pkey.
UPDATE payments
SET
    due_minor = due_minor + %(amount_minor)s,
    changed_at = now(),
    confirmed = true,
    state = CASE
        WHEN due_minor + refunded_minor + %(amount_minor)s = amount_minor THEN 'refund_due'
        ELSE state
    END
WHERE event_id = %(event_id)s;

-- name: restocked
-- The units of a refund are on sale again, or cannot be any more. Repeating it changes nothing. Index: refunds_pkey.
UPDATE refunds SET restock_due = false WHERE id = %(refund_id)s AND restock_due;

-- name: to_restock
-- Refunds with units that are still to be put on sale, in the order of their ids, which is that of their times, and
-- after the last one of the page before. Changes nothing. Index: refunds_to_restock.
SELECT r.id, r.order_id, p.sale_id, r.lines, r.requested_by
FROM refunds r
JOIN payments p USING (event_id)
WHERE r.restock_due AND r.created_at < clock_timestamp() - %(age)s AND r.id > %(after)s
ORDER BY r.id
LIMIT %(limit)s;

-- name: payments_of_order
-- Every payment of an order, for staff. Changes nothing. Index: payments_of_order.
SELECT event_id, state, amount_minor, currency, due_minor, refunded_minor, received_at
FROM payments
WHERE order_id = %(order_id)s
ORDER BY received_at, event_id;

-- name: refunds_of_order
-- Every refund of an order, for staff. Changes nothing. Index: refunds_of_order.
SELECT id, event_id, amount_minor, currency, reason, state, lines, restock, requested_by, created_at, changed_at
FROM refunds
WHERE order_id = %(order_id)s
ORDER BY id;
