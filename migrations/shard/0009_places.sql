-- Entries with an order and a version that the shard has already, from another place of the lane. Redis numbers a
-- version twice after it went back. The entry changes no order. Its place is accounted for, and another status is a
-- contradiction.
CREATE TABLE repeated_places (
    lane smallint NOT NULL,
    lane_seq bigint NOT NULL,
    order_id uuid NOT NULL,
    version integer NOT NULL,
    sale_id uuid NOT NULL,
    epoch bigint NOT NULL,
    status smallint NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (lane, lane_seq, order_id, version)
);

-- `identity` names the dead letter of a note, `was_seen` says that the letter existed at a later look. `order_id`,
-- `sale_id` and `entry` are NULL for an entry that is not a valid order of this shard: its place is not to be trusted.
ALTER TABLE dead_lettered
    ADD COLUMN identity bytea CHECK (octet_length(identity) = 32),
    ADD COLUMN was_seen boolean NOT NULL DEFAULT false,
    ADD COLUMN order_id uuid,
    ADD COLUMN sale_id uuid,
    ADD COLUMN entry bytea,
    ADD CONSTRAINT dead_lettered_whole CHECK ((entry IS NULL) = (order_id IS NULL) AND (entry IS NULL) = (sale_id IS NULL));
