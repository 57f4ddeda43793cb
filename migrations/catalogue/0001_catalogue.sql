-- Products, sales and what was restocked. Money is in minor units of the currency; times are UTC.

CREATE TABLE products (
    id          uuid PRIMARY KEY,
    sku         text NOT NULL UNIQUE CHECK (sku ~ '^[A-Za-z0-9._-]{1,64}$'),
    name        text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    description text NOT NULL DEFAULT '',
    price_minor bigint NOT NULL CHECK (price_minor BETWEEN 0 AND 1000000000000),
    currency    text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    attributes  jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(attributes) = 'object'),
    active      boolean NOT NULL DEFAULT true,
    version     integer NOT NULL DEFAULT 1 CHECK (version > 0),  -- the ETag; raised by every change
    created_at  timestamptz NOT NULL DEFAULT now(),
    changed_at  timestamptz NOT NULL DEFAULT now()
);

-- stage: draft -> loading -> published. `loading` means that `loaded_epoch` is committed and lanes may know the sale;
-- whether a published sale is scheduled, open or over is a matter of Redis time, never stored.
CREATE TABLE sales (
    id              uuid PRIMARY KEY,
    name            text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    stage           text NOT NULL DEFAULT 'draft' CHECK (stage IN ('draft', 'loading', 'published')),
    paused          boolean NOT NULL DEFAULT false,
    ended           boolean NOT NULL DEFAULT false,
    starts_at       timestamptz NOT NULL,
    ends_at         timestamptz NOT NULL,
    hold_seconds    integer NOT NULL CHECK (hold_seconds BETWEEN 1 AND 86400),
    currency        text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    lane_count      smallint NOT NULL DEFAULT 1 CHECK (lane_count BETWEEN 1 AND 100),
    lanes           smallint[],  -- fixed when published, in the order that `home_lane` counts
    epoch           integer NOT NULL DEFAULT 1 CHECK (epoch > 0),
    loaded_epoch    integer NOT NULL DEFAULT 0,  -- newest epoch that was ever loaded into Redis; 0: never
    version         integer NOT NULL DEFAULT 1 CHECK (version > 0),  -- of the definition that lanes and edges compare
    idempotency_key text CHECK (length(idempotency_key) BETWEEN 1 AND 64),
    fingerprint     bytea,  -- of the request that the key came with
    created_by      uuid NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    changed_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (created_by, idempotency_key),
    CHECK (starts_at < ends_at),
    CHECK (loaded_epoch BETWEEN 0 AND epoch),
    CHECK ((idempotency_key IS NULL) = (fingerprint IS NULL)),
    CHECK ((stage = 'draft') = (loaded_epoch = 0)),
    CHECK ((stage = 'draft') = (lanes IS NULL)),
    CHECK (stage = 'published' OR NOT (paused OR ended))
);

-- The synchroniser walks these.
CREATE INDEX sales_live ON sales (ends_at) WHERE stage <> 'draft';

CREATE TABLE sale_items (
    sale_id        uuid NOT NULL REFERENCES sales ON DELETE CASCADE,
    sku_index      smallint NOT NULL CHECK (sku_index BETWEEN 0 AND 199),  -- place in the definition
    sku            text NOT NULL,
    stock          integer NOT NULL CHECK (stock BETWEEN 0 AND 1000000000),  -- initial
    price_minor    bigint NOT NULL CHECK (price_minor BETWEEN 0 AND 1000000000000),
    per_user_limit integer NOT NULL CHECK (per_user_limit BETWEEN 0 AND 65535),  -- 0: no limit
    PRIMARY KEY (sale_id, sku_index),
    UNIQUE (sale_id, sku)
);

-- A row is committed together with the raised stock_ledger; `applied_at` follows when the lane has it.
CREATE TABLE restocks (
    sale_id         uuid NOT NULL,
    idempotency_key text NOT NULL CHECK (length(idempotency_key) BETWEEN 1 AND 64),
    sku             text NOT NULL,
    sku_index       smallint NOT NULL,
    quantity        integer NOT NULL CHECK (quantity BETWEEN 1 AND 1000000000),
    created_by      uuid NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    applied_at      timestamptz,
    PRIMARY KEY (sale_id, idempotency_key),
    FOREIGN KEY (sale_id, sku_index) REFERENCES sale_items (sale_id, sku_index)
);

CREATE INDEX restocks_unapplied ON restocks (created_at) WHERE applied_at IS NULL;
