-- The gate of a sale's epochs. From the commit that raises `epoch`, an entry of an older epoch that is not stored yet
-- charges nothing any more: it arrived after a rebuild had counted, and is stored as rejected.
-- `fence` is the newest fence message that a writer took off this shard's queue.
CREATE TABLE sale_epochs (
    sale_id uuid PRIMARY KEY,
    epoch bigint NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    fence uuid,
    fenced_at timestamptz
);
