-- The dispatcher's statements on the outbox. Row ids are drawn before their transactions commit, so a lower id may
-- appear after a higher one was dispatched: it is dispatched later then, and consumers go by the events' versions.

-- name: oldest
-- The oldest row of all, if there is any: an idle dispatcher asks this and nothing else, at a sixth of the cost of
-- `next_rows`. Reads only. Index: outbox_pkey.
SELECT id FROM outbox ORDER BY id LIMIT 1;

-- name: next_rows
-- The oldest rows of some partitions of some destinations. Reads only. Index: outbox_next, one short range for each.
SELECT o.id, p.destination, p.partition, o.events::text
FROM unnest(%(destinations)s::text[], %(partitions)s::smallint[]) AS p (destination, partition)
CROSS JOIN LATERAL (
    SELECT id, events
    FROM outbox
    WHERE destination = p.destination AND partition = p.partition
    ORDER BY id
    LIMIT %(rows_max)s
) AS o
ORDER BY o.id;

-- name: delete_rows
-- Removes acknowledged rows. Repeating it removes nothing. Index: outbox_pkey.
DELETE FROM outbox WHERE id = ANY(%(ids)s::bigint[]);

-- name: measure
-- By destination: rows waiting (counted up to a bound) and seconds since the oldest was written. Reads only. Index:
-- outbox_pkey.
SELECT d.destination, w.count, w.age_s
FROM unnest(%(destinations)s::text[]) AS d (destination)
CROSS JOIN LATERAL (
    SELECT count(*) AS count,
        coalesce(extract(epoch FROM clock_timestamp() - min(oldest.created_at)), 0)::float8 AS age_s
    FROM (
        SELECT created_at FROM outbox WHERE destination = d.destination ORDER BY id LIMIT %(rows_max)s
    ) AS oldest
) AS w;
