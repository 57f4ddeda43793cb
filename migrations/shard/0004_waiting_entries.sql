-- Entries whose orders wait for a grant longer than a release is on its way: known, not stored, not lost. The queue has
-- their messages; these rows tell the reconciler of them. Its rejecting round removes a row when its version is stored.
CREATE TABLE waiting_entries (
    lane smallint NOT NULL,
    lane_seq bigint NOT NULL,
    order_id uuid NOT NULL,
    version integer NOT NULL,
    entry bytea NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (lane, lane_seq)
);
