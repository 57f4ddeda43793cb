-- The statements of the simulator's books (SQLite).

-- name: add_checkout
-- A page for an order. Repeating it changes nothing. Index: the unique one of order_id.
INSERT INTO checkouts (token, order_id, amount_minor, currency, expires_at_ms, return_url, lines)
VALUES (:token, :order_id, :amount_minor, :currency, :expires_at_ms, :return_url, :lines)
ON CONFLICT (order_id) DO NOTHING;

-- name: checkout_of_order
-- Changes nothing. Index: the unique one of order_id.
SELECT token, order_id, amount_minor, currency, expires_at_ms, return_url, lines, declined, captures
FROM checkouts
WHERE order_id = :order_id;

-- name: checkout_of_token
-- Changes nothing. Index: the primary key.
SELECT token, order_id, amount_minor, currency, expires_at_ms, return_url, lines, declined, captures
FROM checkouts
WHERE token = :token;

-- name: count_outcome
-- A buyer's payments of a page, and whether the last attempt was declined. Not idempotent by itself: one transaction
-- with the entries. Index: the primary key.
UPDATE checkouts SET captures = captures + :captures, declined = :declined WHERE token = :token;

-- name: add_entry
-- A line of the ledger. Repeating it fails, because ids are unique.
INSERT INTO entries (id, kind, event_id, order_id, amount_minor, currency, at_ms)
VALUES (:id, :kind, :event_id, :order_id, :amount_minor, :currency, :at_ms);

-- name: find_entry
-- Changes nothing. Index: the unique one of id.
SELECT id, kind, event_id, order_id, amount_minor, currency, at_ms, attempts FROM entries WHERE id = :id;

-- name: count_attempt
-- A repeated call for a refund. Not idempotent: it counts. Index: the unique one of id.
UPDATE entries SET attempts = attempts + 1 WHERE id = :id;

-- name: refunded
-- The sum of a payment's refunds. Changes nothing. Index: entries_refunds.
SELECT coalesce(sum(amount_minor), 0) FROM entries WHERE event_id = :event_id AND kind = 'refund';

-- name: page_of_entries
-- The ledger from a time or a place on, oldest first. Changes nothing. Index: entries_time.
SELECT id, kind, order_id, amount_minor, currency, at_ms, seq
FROM entries
WHERE (at_ms, seq) > (:at_ms, :seq)
ORDER BY at_ms, seq
LIMIT :limit;

-- name: count_entries
-- Payments, refunds and webhooks under way. Changes nothing. Index: none, this is for people.
SELECT
    (SELECT count(*) FROM entries WHERE kind = 'payment'),
    (SELECT count(*) FROM entries WHERE kind = 'refund'),
    (SELECT count(*) FROM deliveries);

-- name: add_delivery
-- A webhook to deliver. Not idempotent by itself: one transaction with its entry.
INSERT INTO deliveries (body, due_ms) VALUES (:body, :due_ms);

-- name: due_deliveries
-- The webhooks that are due, oldest first. Changes nothing. Index: deliveries_due.
SELECT id, body, attempts FROM deliveries WHERE due_ms <= :now_ms ORDER BY due_ms LIMIT :limit;

-- name: next_due
-- The time of the next webhook after a time. Changes nothing. Index: deliveries_due.
SELECT min(due_ms) FROM deliveries WHERE due_ms > :now_ms;

-- name: delivered
-- The shop has the webhook. Repeating it changes nothing. Index: the primary key.
DELETE FROM deliveries WHERE id = :id;

-- name: postpone
-- The shop did not take the webhook. Index: the primary key. Repeating it counts an attempt more.
UPDATE deliveries SET attempts = attempts + 1, due_ms = :due_ms WHERE id = :id;

-- name: read_behaviour
-- Changes nothing. Index: the primary key.
SELECT document FROM behaviour;

-- name: write_behaviour
-- Replaces the stored behaviour. Repeating it changes nothing. Index: the primary key.
INSERT INTO behaviour (one, document) VALUES (1, :document)
ON CONFLICT (one) DO UPDATE SET document = excluded.document;
