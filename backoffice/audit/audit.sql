-- name: page
-- Reads only, newest first. Indexes entries_pkey, entries_actor, entries_action, entries_object; planned for the given
-- filters each time, so it is never prepared. A filter is NULL or an array of texts. `from_id` is a lower bound of the
-- ids since a time, with a margin for clocks that differ.
SELECT id, at, actor, action, object, before, after, client, request_id, outcome, times
FROM audit.entries
WHERE (%(before_id)s::uuid IS NULL OR id < %(before_id)s)
  AND (%(from_id)s::uuid IS NULL OR id >= %(from_id)s)
  AND (%(since)s::timestamptz IS NULL OR at >= %(since)s)
  AND (%(actor)s::text IS NULL OR actor = %(actor)s)
  AND (%(actions)s::text[] IS NULL OR action = ANY (%(actions)s))
  AND (%(objects)s::text[] IS NULL OR object = ANY (%(objects)s))
ORDER BY id DESC LIMIT %(limit)s;

-- name: add_refusal
-- Primary key. Repeating changes nothing: the caller repeats with the same id. `at` is the time of the refusal, which
-- the id has as well: it may be written much later.
INSERT INTO audit.entries (id, at, actor, action, object, client, request_id, outcome, times)
VALUES (%(id)s, %(at)s, %(actor)s, %(action)s, %(object)s, %(client)s, %(request_id)s, %(outcome)s, %(times)s)
ON CONFLICT (id) DO NOTHING;

-- name: delete_old
-- Primary key, oldest first. Repeating deletes the next ones.
DELETE FROM audit.entries
WHERE id IN (SELECT id FROM audit.entries WHERE id < %(before_id)s ORDER BY id LIMIT %(limit)s)
  AND at < %(before)s
RETURNING id;
