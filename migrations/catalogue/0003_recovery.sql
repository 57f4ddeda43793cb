-- What is known of lanes that Redis lost, and how far rebuilding a sale has come.

-- The newest sequence that Redis ever showed of a lane: a lane that shows less has gone back.
ALTER TABLE lane_watermark ADD COLUMN seen_seq bigint NOT NULL DEFAULT 0 CHECK (seen_seq >= 0);

-- A lane was found at `found_seq` and set to `floor_seq`: whatever lies between and is in no shard is gone. `settled_at`
-- is when a rebuild had waited for the queue and noted the gaps in `lost_entries`.
CREATE TABLE lane_losses (
    lane smallint NOT NULL,
    found_seq bigint NOT NULL CHECK (found_seq >= 0),
    floor_seq bigint NOT NULL CHECK (floor_seq > found_seq),
    noticed_at timestamptz NOT NULL DEFAULT now(),
    settled_at timestamptz,
    PRIMARY KEY (lane, found_seq, floor_seq)
);

-- Entries that Redis had numbered and nobody has any more, inclusive bounds. Sales that had begun then are not whole.
CREATE TABLE lost_entries (
    lane smallint NOT NULL,
    first_seq bigint NOT NULL CHECK (first_seq > 0),
    last_seq bigint NOT NULL CHECK (last_seq >= first_seq),
    noted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (lane, first_seq)
);

-- One row per epoch that a rebuild raised. `reopening` is committed before a lane may take orders in the new epoch.
CREATE TABLE rebuilds (
    sale_id uuid NOT NULL,
    epoch integer NOT NULL CHECK (epoch > 1),
    stage text NOT NULL DEFAULT 'closed' CHECK (stage IN ('closed', 'counted', 'reopening', 'done')),
    started_at timestamptz NOT NULL DEFAULT now(),
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sale_id, epoch)
);
