-- The guard against overselling, catalogue half: how much there is and how much of it each shard may sell.
-- A shard's own half is `quota` in its database. Who writes: publishing and restock raise `stock`; the shard
-- writers move `granted` and `shard_grant`, always with the ledger row locked first.

CREATE TABLE stock_ledger (
    sale_id uuid NOT NULL,
    sku text NOT NULL,
    stock integer NOT NULL CHECK (stock >= 0),
    granted integer NOT NULL DEFAULT 0,
    PRIMARY KEY (sale_id, sku),
    CONSTRAINT stock_ledger_no_oversell CHECK (granted BETWEEN 0 AND stock)
);

-- `total` is absolute, so a grant repeated after a crash changes nothing; `seq` grows with every grant, so a
-- shard knows which grant is newest and a late release cannot undo a newer grant.
CREATE TABLE shard_grant (
    sale_id uuid NOT NULL,
    sku text NOT NULL,
    shard smallint NOT NULL,
    total integer NOT NULL CHECK (total >= 0),
    seq bigint NOT NULL CHECK (seq > 0),
    PRIMARY KEY (sale_id, sku, shard),
    FOREIGN KEY (sale_id, sku) REFERENCES stock_ledger (sale_id, sku)
);
CREATE INDEX shard_grant_shard ON shard_grant (shard);

-- How far the reconciler has proved that every entry of a lane is stored: all up to `verified_seq`, inclusive.
CREATE TABLE lane_watermark (
    lane smallint PRIMARY KEY,
    verified_seq bigint NOT NULL CHECK (verified_seq >= 0),
    verified_at timestamptz NOT NULL DEFAULT now()
);
