-- A buyer's orders, read from the primary of the shard.

-- name: order_by_id
-- Reads only. Index: orders_pkey.
SELECT id, user_id, sale_id, idempotency_key, currency, lines, status, version, epoch, reserved_at, expires_at, changed_at
FROM orders
WHERE id = %s;

-- name: orders_of_user
-- Reads only: one page, newest first, starting at the cursor. Index: orders_of_user.
SELECT id, user_id, sale_id, idempotency_key, currency, lines, status, version, epoch, reserved_at, expires_at, changed_at
FROM orders
WHERE user_id = %s AND id < %s
ORDER BY id DESC
LIMIT %s;
