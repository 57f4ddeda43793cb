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

-- name: measure
-- Refunds that are not done: their number, the age of the oldest in seconds, and how many the provider refused. Changes
-- nothing. Index: refunds_open.
SELECT
    count(*),
    coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8,
    count(*) FILTER (WHERE state = 'refused')
FROM refunds
WHERE state <> 'done';
