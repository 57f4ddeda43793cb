-- Invariant G in one shard: every unit of money is accounted for. Reads only.

-- name: contradictions
-- Payments, changed in a span of time, with amounts that contradict their refunds, or without a paid order. The last
-- column: its settling or its order may only be late.
-- Index: payments_changed, refunds_of_order, orders_pkey.
SELECT p.event_id, p.order_id,
    CASE
        WHEN r.due <> p.due_minor OR r.done <> p.refunded_minor THEN 'its refunds have other amounts'
        WHEN p.state = 'received' AND p.sale_id = %(unknown)s THEN 'received long ago, and its order is not known'
        WHEN p.state = 'received' THEN 'received long ago and not settled'
        WHEN o.id IS NULL THEN 'captured for an order that is not stored'
        WHEN (o.total_minor, o.currency) <> (p.amount_minor, p.currency) THEN 'pays an order of another amount'
        ELSE 'captured for an order that is not paid'
    END,
    p.changed_at,
    r.due = p.due_minor AND r.done = p.refunded_minor
        AND (o.id IS NULL OR (o.total_minor, o.currency) = (p.amount_minor, p.currency))
FROM payments p
LEFT JOIN orders o ON o.id = p.order_id
CROSS JOIN LATERAL (
    SELECT
        coalesce(sum(f.amount_minor) FILTER (WHERE f.state <> 'done'), 0) AS due,
        coalesce(sum(f.amount_minor) FILTER (WHERE f.state = 'done'), 0) AS done
    FROM refunds f
    WHERE f.order_id = p.order_id AND f.event_id = p.event_id
) AS r
WHERE p.changed_at >= %(since)s
    AND p.changed_at < %(until)s
    AND (
        r.due <> p.due_minor
        OR r.done <> p.refunded_minor
        OR (p.state = 'received' AND p.received_at < clock_timestamp() - %(late)s)
        OR (
            -- A payment keeps an amount that is neither due nor refunded only for a paid order of that amount.
            p.state <> 'received'
            AND p.due_minor + p.refunded_minor < p.amount_minor
            AND (o.status IS DISTINCT FROM 1 OR (o.total_minor, o.currency) <> (p.amount_minor, p.currency))
            AND (p.confirmed OR p.changed_at < clock_timestamp() - %(late)s)
        )
    )
ORDER BY p.changed_at
LIMIT %(limit)s;

-- name: unpaid
-- Orders that became paid in a span of time, and that no payment pays: there is none, or its money went back without a
-- request of staff. Index: orders_paid, payments_settling, refunds_once.
SELECT o.id, o.changed_at
FROM orders o
WHERE o.status = 1
    AND o.changed_at >= %(since)s
    AND o.changed_at < least(%(until)s, clock_timestamp() - %(late)s)
    AND o.total_minor > 0
    AND NOT EXISTS (
        SELECT
        FROM payments p
        WHERE p.order_id = o.id
            AND p.settles
            AND p.state <> 'received'
            AND NOT EXISTS (SELECT FROM refunds f WHERE f.event_id = p.event_id AND f.reason <> 'staff')
    )
ORDER BY o.changed_at
LIMIT %(limit)s;

-- name: slice_of_payments
-- The time up to which a bounded number of payments changed since a time; no row for the last slice.
-- Index: payments_changed.
SELECT changed_at FROM payments WHERE changed_at > %(since)s ORDER BY changed_at OFFSET %(rows)s LIMIT 1;

-- name: slice_of_orders
-- The time up to which a bounded number of orders became paid since a time; no row for the last slice.
-- Index: orders_paid.
SELECT changed_at FROM orders WHERE status = 1 AND changed_at > %(since)s ORDER BY changed_at OFFSET %(rows)s LIMIT 1;

-- name: sums
-- All money by currency, in minor units: captured at the provider, kept for paid orders, due, refunded, and not settled
-- yet. Reads the whole table.
SELECT
    currency,
    sum(amount_minor)::bigint,
    coalesce(sum(amount_minor - due_minor - refunded_minor) FILTER (WHERE state <> 'received'), 0)::bigint,
    sum(due_minor)::bigint,
    sum(refunded_minor)::bigint,
    coalesce(sum(amount_minor) FILTER (WHERE state = 'received'), 0)::bigint
FROM payments
GROUP BY currency
ORDER BY currency;
