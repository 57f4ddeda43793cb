-- name: due
-- Orders with an ended hold, the oldest first, after a position. Changes nothing. Index: orders_due.
SELECT id, user_id, sale_id, expires_at
FROM orders
WHERE status = 0
    AND expires_at <= to_timestamp(%(before_ms)s / 1000.0)
    AND expires_at >= %(after)s
    AND (expires_at, id) > (%(after)s, %(after_id)s)
ORDER BY expires_at, id
LIMIT %(limit)s;

-- name: final
-- Which of these orders are stored in a final state. Changes nothing. Index: orders_pkey.
SELECT id FROM orders WHERE id = ANY(%(ids)s) AND status <> 0;
