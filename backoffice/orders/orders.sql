-- name: page
-- Newest first: index orders_of_user with a user, else the primary key; with a sale only the ids of its window
-- (sale_window). A hold past its time counts as expired.
SELECT id, user_id, sale_id, status, currency, total_minor, lines, reserved_at, expires_at, version, changed_at
FROM orders
WHERE (%(before)s::uuid IS NULL OR id < %(before)s)
  AND (%(first)s::uuid IS NULL OR id >= %(first)s)
  AND (%(end)s::uuid IS NULL OR id < %(end)s)
  AND (%(user_id)s::uuid IS NULL OR user_id = %(user_id)s)
  AND (%(sale_id)s::uuid IS NULL OR sale_id = %(sale_id)s)
  AND (%(status)s::smallint IS NULL
       OR CASE WHEN status = 0 AND expires_at <= %(now)s THEN 3 ELSE status END = %(status)s)
ORDER BY id DESC LIMIT %(limit)s;

-- name: sale_window
-- In the catalogue, primary key. No order is later than the end, or than the last change, which may have moved the end.
SELECT starts_at, greatest(ends_at, changed_at) FROM sales WHERE id = %(sale_id)s;

-- name: get
-- Primary key.
SELECT id, user_id, sale_id, status, currency, total_minor, lines, reserved_at, expires_at, version, changed_at
FROM orders WHERE id = %(id)s;

-- name: history
-- First column of the primary key.
SELECT version, status, at FROM order_transitions WHERE order_id = %(id)s ORDER BY version;
