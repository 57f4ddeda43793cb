-- The dispatcher's statements on the outbox. Row ids are drawn before their transactions commit, so a lower id may
-- appear after a higher one was dispatched: it is dispatched later then, and consumers go by the events' versions.

-- name: next_rows
-- The oldest rows of each of some partitions. Reads only. Index: outbox_next, one short range for each partition.
SELECT o.id, p.partition, o.events::text
FROM unnest(%(partitions)s::smallint[]) AS p (partition)
CROSS JOIN LATERAL (
    SELECT id, events
    FROM outbox
    WHERE destination = %(destination)s AND partition = p.partition
    ORDER BY id
    LIMIT %(rows_max)s
) AS o
ORDER BY p.partition, o.id;

-- name: delete_rows
-- Removes acknowledged rows. Repeating it removes nothing. Index: outbox_pkey.
DELETE FROM outbox WHERE id = ANY(%(ids)s::bigint[]);

-- name: measure
-- Rows waiting (counted up to a bound) and seconds since the oldest was written. Reads only. Index: outbox_pkey.
SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(w.created_at)), 0)::float8
FROM (
    SELECT created_at FROM outbox WHERE destination = %(destination)s ORDER BY id LIMIT %(rows_max)s
) AS w;
