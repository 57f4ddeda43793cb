-- Orders of the users of one shard, the shard's half of the guard, and the outbox. Written by the shard writer only.

-- `status` is domain.orders.OrderStatus; `lines` is [{"sku", "quantity", "unit_price_minor"}] in request order.
CREATE TABLE orders (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    sale_id uuid NOT NULL,
    bucket smallint NOT NULL CHECK (bucket BETWEEN 0 AND 1023),
    idempotency_key text NOT NULL,
    status smallint NOT NULL CHECK (status BETWEEN 0 AND 4),
    version integer NOT NULL CHECK (version > 0),
    epoch bigint NOT NULL,
    currency text NOT NULL CHECK (length(currency) = 3),
    total_minor bigint NOT NULL CHECK (total_minor >= 0),
    lines jsonb NOT NULL CHECK (jsonb_typeof(lines) = 'array'),
    reserved_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    changed_at timestamptz NOT NULL,
    lane smallint NOT NULL CHECK (lane >= 0),
    charged boolean NOT NULL,
    -- A stored order holds its units exactly as long as it is reserved or paid: none without a grant.
    CONSTRAINT orders_charged CHECK (charged = (status IN (0, 1))),
    CONSTRAINT orders_one_per_key UNIQUE (user_id, sale_id, idempotency_key)
);
CREATE INDEX orders_of_user ON orders (user_id, id DESC);
CREATE INDEX orders_due ON orders (expires_at) WHERE status = 0;

-- One row per version of an order, with its place in its lane: what invariant B is counted from.
CREATE TABLE order_transitions (
    order_id uuid NOT NULL,
    version integer NOT NULL,
    status smallint NOT NULL,
    at timestamptz NOT NULL,
    lane smallint NOT NULL,
    lane_seq bigint NOT NULL,
    PRIMARY KEY (order_id, version)
);
CREATE INDEX order_transitions_lane_seq ON order_transitions (lane, lane_seq);

-- Entries that could not be stored and went to the dead letters: accounted for, not lost.
CREATE TABLE dead_lettered (
    lane smallint NOT NULL,
    lane_seq bigint NOT NULL,
    reason text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (lane, lane_seq)
);

-- The guard, shard half: this shard may sell `granted` units by grant number `seq`, and has sold `sold`.
CREATE TABLE quota (
    sale_id uuid NOT NULL,
    sku text NOT NULL,
    granted integer NOT NULL DEFAULT 0,
    seq bigint NOT NULL DEFAULT 0,
    sold integer NOT NULL DEFAULT 0,
    PRIMARY KEY (sale_id, sku),
    CONSTRAINT quota_no_oversell CHECK (sold BETWEEN 0 AND granted)
) WITH (fillfactor = 50);

-- What is to be told: a row carries the events of one batch for one (destination, partition), in order.
-- The dispatcher deletes exactly what was acknowledged.
CREATE TABLE outbox (
    id bigserial PRIMARY KEY,
    destination text NOT NULL,
    partition smallint NOT NULL CHECK (partition BETWEEN 0 AND 15),
    events jsonb COMPRESSION lz4 NOT NULL CHECK (jsonb_typeof(events) = 'array'),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX outbox_next ON outbox (destination, partition, id);

-- For counting from outside: a row per line of an order.
CREATE VIEW audit_orders AS
SELECT
    o.id AS order_id,
    o.sale_id,
    o.user_id,
    line ->> 'sku' AS sku,
    (line ->> 'quantity')::integer AS quantity,
    (ARRAY['reserved', 'paid', 'cancelled', 'expired', 'rejected'])[o.status + 1] AS status
FROM orders o
CROSS JOIN LATERAL jsonb_array_elements(o.lines) AS line;
