-- name: enqueue_notice
-- One row per call: each notice has a new id, and its consumer drops an id that it knows.
INSERT INTO outbox (destination, partition, events) VALUES (%(destination)s, %(partition)s, %(events)s);
