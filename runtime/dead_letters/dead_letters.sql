-- Dead letters in the catalogue database. Statements that add or remove a letter lock the queue's count first, then the
-- letter, so that two of them cannot deadlock.

-- name: add_letter
-- Adds a letter unless its queue is at the bound (then no row is answered), and answers its id. A letter of the same
-- identity is brought up to date instead. If that one is being replayed, the message has died again: the letter gets
-- a new id, and the old id counts as replayed. Repeating it makes no second letter. Index: dead_letters_identity_key.
WITH known AS (
    UPDATE dead_letters AS d
    SET
        id = CASE
            WHEN d.claim IS NULL THEN d.id
            ELSE nextval(pg_get_serial_sequence('dead_letters', 'id'))
        END,
        kind = %(kind)s,
        reason = %(reason)s,
        attempts = %(attempts)s,
        history = %(history)s,
        died_at = clock_timestamp(),
        claim = NULL,
        claimed_until = NULL
    FROM (SELECT id FROM dead_letters WHERE identity = %(identity)s FOR UPDATE) AS before
    WHERE d.id = before.id
    RETURNING d.id, before.id AS id_before
),
replayed AS (
    INSERT INTO replayed_letters (id, identity)
    SELECT id_before, %(identity)s FROM known WHERE id_before <> id
    ON CONFLICT (id) DO NOTHING
),
counted AS (
    INSERT INTO dead_letter_counts AS c (queue, letters)
    SELECT %(queue)s, 1 WHERE NOT EXISTS (SELECT FROM known)
    ON CONFLICT (queue) DO UPDATE SET letters = c.letters + 1 WHERE c.letters < %(letters_max)s
    RETURNING queue
),
added AS (
    INSERT INTO dead_letters (
        identity, queue, message_id, body, headers, kind, reason, attempts, replayable, first_seen_at, died_at, history
    )
    SELECT
        %(identity)s, queue, %(message_id)s, %(body)s, %(headers)s, %(kind)s, %(reason)s, %(attempts)s, %(replayable)s,
        coalesce(to_timestamp(%(first_seen_ms)s::numeric / 1000), clock_timestamp()), clock_timestamp(), %(history)s
    FROM counted
    RETURNING id
)
SELECT id FROM known
UNION ALL
SELECT id FROM added;

-- name: list_letters
-- A page of all letters behind an id. Changes nothing. Index: dead_letters_pkey.
SELECT
    id, queue, message_id, body, headers, kind, reason, attempts, replayable,
    extract(epoch FROM first_seen_at) * 1000, extract(epoch FROM died_at) * 1000, history
FROM dead_letters
WHERE id > %(after)s
ORDER BY id
LIMIT %(rows_max)s;

-- name: list_letters_of_queue
-- A page of one queue's letters behind an id. Changes nothing. Index: dead_letters_queue.
SELECT
    id, queue, message_id, body, headers, kind, reason, attempts, replayable,
    extract(epoch FROM first_seen_at) * 1000, extract(epoch FROM died_at) * 1000, history
FROM dead_letters
WHERE queue = %(queue)s AND id > %(after)s
ORDER BY id
LIMIT %(rows_max)s;

-- name: get_letter
-- One letter. Changes nothing. Index: dead_letters_pkey.
SELECT
    id, queue, message_id, body, headers, kind, reason, attempts, replayable,
    extract(epoch FROM first_seen_at) * 1000, extract(epoch FROM died_at) * 1000, history
FROM dead_letters
WHERE id = %(id)s;

-- name: count_letters
-- Letters by queue, without the queues that have none. Changes nothing. Reads the whole table: a row per queue.
SELECT queue, letters FROM dead_letter_counts WHERE letters > 0 ORDER BY queue;

-- name: lock_count
-- Locks the count of a letter's queue. Changes nothing. Index: dead_letters_pkey, dead_letter_counts_pkey.
SELECT 1
FROM dead_letter_counts c
JOIN dead_letters d USING (queue)
WHERE d.id = %(id)s
FOR UPDATE OF c;

-- name: delete_letter
-- Removes a letter and answers it. Repeating it removes nothing. Index: dead_letters_pkey.
WITH gone AS (
    DELETE FROM dead_letters WHERE id = %(id)s RETURNING id, queue, message_id, kind
),
counted AS (
    UPDATE dead_letter_counts c SET letters = c.letters - 1 FROM gone g WHERE c.queue = g.queue
)
SELECT id, queue, message_id, kind FROM gone;

-- name: claim_letter
-- Claims a letter for a replay unless another replay holds it: one of many callers gets the row. A claim ends by itself
-- after its lease. Index: dead_letters_pkey.
UPDATE dead_letters
SET claim = %(claim)s, claimed_until = clock_timestamp() + %(lease)s
WHERE id = %(id)s AND replayable AND (claimed_until IS NULL OR claimed_until <= clock_timestamp())
RETURNING
    id, queue, message_id, body, headers, kind, reason, attempts, replayable,
    extract(epoch FROM first_seen_at) * 1000, extract(epoch FROM died_at) * 1000, history;

-- name: release_letter
-- Gives a claim back. Repeating it changes nothing, nor does it for a claim of another. Index: dead_letters_pkey.
UPDATE dead_letters SET claim = NULL, claimed_until = NULL WHERE id = %(id)s AND claim = %(claim)s;

-- name: finish_replay
-- Removes a letter that is back in its queue, remembers its id for a day, and answers it. Repeating it changes nothing;
-- a claim that another replay has taken over removes nothing. Index: dead_letters_pkey, replayed_letters_age.
WITH gone AS (
    DELETE FROM dead_letters WHERE id = %(id)s AND claim = %(claim)s RETURNING id, queue, identity, message_id, kind
),
counted AS (
    UPDATE dead_letter_counts c SET letters = c.letters - 1 FROM gone g WHERE c.queue = g.queue
),
forgotten AS (
    DELETE FROM replayed_letters WHERE replayed_at < now() - interval '1 day'
),
remembered AS (
    INSERT INTO replayed_letters (id, identity)
    SELECT id, identity FROM gone
    ON CONFLICT (id) DO NOTHING
)
SELECT id, queue, message_id, kind FROM gone;

-- name: was_replayed
-- Whether a letter of this id was replayed within a day. Changes nothing. Index: replayed_letters_pkey.
SELECT EXISTS (SELECT FROM replayed_letters WHERE id = %(id)s);
