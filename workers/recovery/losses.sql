-- Records by which the watch and a rebuild detect that a lane went back.

-- name: newest_stored
-- The newest place of each lane that this shard accounts for. Of the dead letters only valid orders count: a malformed
-- message may name any place, and a floor from it would close the lane. Changes nothing.
-- Four look-ups a lane.
-- Index: order_transitions_lane_seq, repeated_places_pkey, dead_lettered_pkey, waiting_entries_pkey.
SELECT l.lane, greatest(
    (SELECT max(lane_seq) FROM order_transitions t WHERE t.lane = l.lane),
    (SELECT max(lane_seq) FROM repeated_places r WHERE r.lane = l.lane),
    (SELECT max(lane_seq) FROM dead_lettered d WHERE d.lane = l.lane AND d.entry IS NOT NULL),
    (SELECT max(lane_seq) FROM waiting_entries w WHERE w.lane = l.lane)
)
FROM unnest(%(lanes)s::smallint[]) AS l (lane);

-- name: newest_seen
-- The newest place of each lane that was proved stored or seen in Redis. Changes nothing. Index: lane_watermark_pkey.
SELECT lane, greatest(verified_seq, seen_seq) FROM lane_watermark WHERE lane = ANY(%(lanes)s::smallint[]);

-- name: verified
-- How far each lane was proved to be stored. Changes nothing. Index: lane_watermark_pkey.
SELECT lane, verified_seq FROM lane_watermark WHERE lane = ANY(%(lanes)s::smallint[]);

-- name: note_seen
-- Records sequences seen in Redis; never lowers one. Repeating it changes nothing. Index: lane_watermark_pkey.
INSERT INTO lane_watermark AS w (lane, verified_seq, seen_seq)
SELECT lane, 0, seq FROM unnest(%(lanes)s::smallint[], %(seqs)s::bigint[]) AS s (lane, seq)
ON CONFLICT (lane) DO UPDATE SET seen_seq = excluded.seen_seq WHERE excluded.seen_seq > w.seen_seq;

-- name: note_loss
-- Records a lane found below its recorded sequence. Repeating it changes nothing until the loss is settled; afterwards
-- it records another loss of the same extent. Index: lane_losses_pkey.
INSERT INTO lane_losses AS l (lane, found_seq, floor_seq, was_quiet)
VALUES (%(lane)s, %(found)s, %(floor)s, %(was_quiet)s)
ON CONFLICT (lane, found_seq, floor_seq) DO UPDATE
SET was_quiet = l.was_quiet AND excluded.was_quiet, noticed_at = now(), settled_at = NULL
WHERE l.settled_at IS NOT NULL;

-- name: published_sales
-- A page of the sales that lanes must know, the last to end first: those that are over come last. Changes nothing.
-- Index: sales_live.
SELECT id, epoch, lanes, ends_at FROM sales
WHERE stage = 'published' AND ends_at > now() - make_interval(secs => %(kept_s)s)
    AND (%(id)s::uuid IS NULL OR (ends_at, id) < (%(ends_at)s::timestamptz, %(id)s::uuid))
ORDER BY ends_at DESC, id DESC LIMIT %(limit)s;
