-- Where virtual buckets live when it is not where the first map puts them (domain.topology). Written by
-- `flashsale shards` and by the step that finishes a move; the process that moves holds an advisory lock.

-- `version`: of the map since when the bucket has this owner. A bucket without a row is where the first map puts it.
CREATE TABLE bucket_owner (
    bucket smallint PRIMARY KEY CHECK (bucket BETWEEN 0 AND 1023),
    shard smallint NOT NULL CHECK (shard >= 0),
    version bigint NOT NULL CHECK (version > 0)
);

-- One row, or none before the first move. `version` grows with each change of an owner. `switches` is odd while rows of
-- a group of buckets may be in two shards: a comparison over all shards counts only when `switches` was even before it
-- and is the same after it.
CREATE TABLE bucket_map (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version bigint NOT NULL DEFAULT 0 CHECK (version >= 0),
    switches bigint NOT NULL DEFAULT 0 CHECK (switches >= 0)
);

-- The group of buckets that is on its way: at most one. `token` names the process that moves; a process that continues
-- the work of a dead one puts its own there. Up to `copying` the source is the owner, from `switched` on the target is.
CREATE TABLE bucket_group (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    buckets smallint[] NOT NULL CHECK (cardinality(buckets) > 0),
    source smallint NOT NULL CHECK (source >= 0),
    target smallint NOT NULL CHECK (target >= 0 AND target <> source),
    step text NOT NULL CHECK (step IN ('announced', 'copying', 'switched')),
    token uuid NOT NULL,
    began_at timestamptz NOT NULL DEFAULT now()
);
