-- Outgoing webhooks of the shop, and the log of their deliveries.

-- `salt` and `previous_salt` are no secrets: a secret follows from them and the installation's key (domain.webhooks).
-- `enabled_at`: events from then on are delivered. `failures` and `failing_since` count from the last success.
-- `paused_until`: the receiver asked for a pause. `skipped` counts events that found the backlog at its bound.
-- `notice_id` is set while a notice to the staff member `notify` is owed.
CREATE TABLE webhooks (
    id uuid PRIMARY KEY,
    url text NOT NULL CHECK (length(url) BETWEEN 1 AND 2000),
    description text NOT NULL CHECK (length(description) <= 500),
    event_types text[] NOT NULL CHECK (cardinality(event_types) BETWEEN 1 AND 50),
    salt bytea NOT NULL CHECK (octet_length(salt) = 16),
    previous_salt bytea CHECK (octet_length(previous_salt) = 16),
    previous_until timestamptz,
    enabled boolean NOT NULL DEFAULT true,
    enabled_at timestamptz NOT NULL DEFAULT now(),
    disabled_reason text CHECK (disabled_reason IN ('staff', 'gone', 'failing')),
    failures integer NOT NULL DEFAULT 0 CHECK (failures >= 0),
    failing_since timestamptz,
    paused_until timestamptz,
    skipped bigint NOT NULL DEFAULT 0 CHECK (skipped >= 0),
    notice_id uuid,
    notify uuid NOT NULL,
    idempotency_key text CHECK (length(idempotency_key) BETWEEN 1 AND 64),
    fingerprint bytea,  -- of the request that the key came with
    created_by uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (created_by, idempotency_key),
    CHECK (enabled = (disabled_reason IS NULL)),
    CHECK ((previous_salt IS NULL) = (previous_until IS NULL)),
    CHECK ((failures = 0) = (failing_since IS NULL))
);

-- One delivery for each webhook and event, however often the event is read. `id` is a UUIDv7. `history` has the last
-- attempts. `next_at` is null when no attempt is due any more.
CREATE TABLE webhook_deliveries (
    id uuid PRIMARY KEY,
    webhook_id uuid NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    event_id text NOT NULL CHECK (length(event_id) BETWEEN 1 AND 256),
    event_type text NOT NULL,
    body bytea NOT NULL,
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'failed')),
    attempts integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_at timestamptz DEFAULT now(),
    attempted_at timestamptz,
    status integer,
    history json NOT NULL DEFAULT '[]',
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (webhook_id, event_id),
    CHECK ((state = 'waiting') = (next_at IS NOT NULL))
);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (webhook_id, next_at) WHERE state = 'waiting';
CREATE INDEX webhook_deliveries_log ON webhook_deliveries (webhook_id, id);
