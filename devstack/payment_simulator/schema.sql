-- The simulator's books. Amounts are in minor units of the currency, times in milliseconds since 1970.

-- `captures`: payments that were captured for the order; more than one is a buyer who paid twice.
CREATE TABLE IF NOT EXISTS checkouts (
    token TEXT PRIMARY KEY,
    order_id TEXT NOT NULL UNIQUE,
    amount_minor INTEGER NOT NULL,
    currency TEXT NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    return_url TEXT NOT NULL,
    lines TEXT NOT NULL,
    declined INTEGER NOT NULL DEFAULT 0,
    captures INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- The ledger. `id`: event id of a payment, the shop's refund id of a refund. `event_id`: the payment of either.
-- `attempts`: calls for a refund.
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL CHECK (kind IN ('payment', 'refund')),
    event_id TEXT NOT NULL,
    order_id TEXT NOT NULL,
    amount_minor INTEGER NOT NULL CHECK (amount_minor > 0),
    currency TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 1
) STRICT;
CREATE INDEX IF NOT EXISTS entries_time ON entries (at_ms, seq);
CREATE INDEX IF NOT EXISTS entries_refunds ON entries (event_id) WHERE kind = 'refund';

-- Webhooks that the shop has not acknowledged yet.
CREATE TABLE IF NOT EXISTS deliveries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    body BLOB NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS deliveries_due ON deliveries (due_ms);

CREATE TABLE IF NOT EXISTS behaviour (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    document TEXT NOT NULL
) STRICT;
