-- Money: a row for each event of the payment provider that captured money, and one for each refund.

-- `state` is domain.payments.PaymentState. `settles`: this event may pay its order; at most one event of an order may,
-- decided here before Redis is asked, so that a repeated event and a second payment cannot be confused. `confirmed`:
-- the order was seen as paid in this shard afterwards. `reference` is the provider's own name of the payment.
CREATE TABLE payments (
    event_id text PRIMARY KEY CHECK (length(event_id) BETWEEN 1 AND 255),
    order_id uuid NOT NULL,
    user_id uuid NOT NULL,
    sale_id uuid NOT NULL,
    provider text NOT NULL CHECK (length(provider) BETWEEN 1 AND 40),
    reference text NOT NULL CHECK (length(reference) <= 255),
    amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    currency text NOT NULL CHECK (length(currency) = 3),
    state text NOT NULL CHECK (state IN ('received', 'captured', 'refund_due', 'refunded')),
    settles boolean NOT NULL,
    confirmed boolean NOT NULL DEFAULT false,
    due_minor bigint NOT NULL DEFAULT 0 CHECK (due_minor >= 0),
    refunded_minor bigint NOT NULL DEFAULT 0 CHECK (refunded_minor >= 0),
    received_at timestamptz NOT NULL DEFAULT now(),
    changed_at timestamptz NOT NULL DEFAULT now(),
    -- No more goes back than came.
    CONSTRAINT payments_never_over CHECK (due_minor + refunded_minor <= amount_minor),
    CONSTRAINT payments_state CHECK (
        CASE state
            WHEN 'received' THEN settles AND due_minor = 0 AND refunded_minor = 0
            WHEN 'captured' THEN settles AND due_minor + refunded_minor < amount_minor
            WHEN 'refund_due' THEN due_minor > 0 AND due_minor + refunded_minor = amount_minor
            ELSE refunded_minor = amount_minor
        END
    )
);
CREATE UNIQUE INDEX payments_settling ON payments (order_id) WHERE settles;
CREATE INDEX payments_of_order ON payments (order_id);
CREATE INDEX payments_received ON payments (received_at) WHERE state = 'received';
CREATE INDEX payments_unconfirmed ON payments (changed_at) WHERE state = 'captured' AND NOT confirmed;
CREATE INDEX payments_time ON payments (received_at);
CREATE INDEX payments_changed ON payments (changed_at);

-- `lines` are the SKUs whose price goes back, NULL for a refund without a request. `provider_id` is the provider's id
-- of the refund. `requested_by` and `idempotency_key` are of the staff's request, NULL for a refund without one.
-- `restock`: the request also puts the units on sale again; `restock_due`: that has not happened yet.
CREATE TABLE refunds (
    id uuid PRIMARY KEY,
    event_id text NOT NULL REFERENCES payments,
    order_id uuid NOT NULL,
    amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    currency text NOT NULL CHECK (length(currency) = 3),
    reason text NOT NULL CHECK (reason IN ('late', 'second', 'mismatch', 'lost', 'staff')),
    state text NOT NULL DEFAULT 'due' CHECK (state IN ('due', 'done', 'refused')),
    lines text[],
    provider_id text CHECK (length(provider_id) <= 255),
    requested_by uuid,
    idempotency_key text CHECK (length(idempotency_key) BETWEEN 1 AND 64),
    restock boolean NOT NULL DEFAULT false,
    restock_due boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    changed_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT refunds_done CHECK ((state = 'done') = (provider_id IS NOT NULL)),
    CONSTRAINT refunds_of_staff CHECK ((reason = 'staff') = (idempotency_key IS NOT NULL)),
    CONSTRAINT refunds_one_per_key UNIQUE (order_id, idempotency_key)
);
CREATE UNIQUE INDEX refunds_once ON refunds (event_id) WHERE reason <> 'staff';
CREATE INDEX refunds_of_order ON refunds (order_id);
CREATE INDEX refunds_time ON refunds (changed_at);
CREATE INDEX refunds_open ON refunds (created_at) WHERE state <> 'done';
CREATE INDEX refunds_to_restock ON refunds (created_at) WHERE restock_due;

-- Each line of an order is refunded at most once, by whomever and however often.
CREATE TABLE refunded_lines (
    order_id uuid NOT NULL,
    sku text NOT NULL,
    refund_id uuid NOT NULL REFERENCES refunds,
    PRIMARY KEY (order_id, sku)
);

-- For the look that each paid order has its payment.
CREATE INDEX orders_paid ON orders (changed_at) WHERE status = 1;
