-- name: add_entry
-- Primary key. Not idempotent: each entry has a new id.
INSERT INTO audit.entries (id, actor, action, object, before, after, client, request_id, outcome, times)
VALUES (
    %(id)s, %(actor)s, %(action)s, %(object)s, %(before)s, %(after)s, %(client)s, %(request_id)s, %(outcome)s, %(times)s
);
