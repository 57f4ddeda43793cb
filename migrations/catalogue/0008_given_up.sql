-- Places of entries in the dead letters that an operator deleted without a replay. No shard will store such an entry;
-- its place is accounted for. `sale_id` is the sale that lost a change of an order. It is NULL if the entry was not a
-- valid order, or if a shard has a newer version of the order.
CREATE TABLE given_up_entries (
    lane smallint NOT NULL,
    lane_seq bigint NOT NULL CHECK (lane_seq > 0),
    sale_id uuid,
    order_id uuid,
    noted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (lane, lane_seq)
);
CREATE INDEX given_up_entries_sale ON given_up_entries (sale_id) WHERE sale_id IS NOT NULL;

-- Tells a replayed letter from a deleted one: the notes in the shards know a letter by its identity.
ALTER TABLE replayed_letters ADD COLUMN identity bytea CHECK (octet_length(identity) = 32);
CREATE INDEX replayed_letters_identity ON replayed_letters (identity);
