-- Notices: the choices of an account, and the browsers that show its web pushes. Rows are deleted with their account.

-- `language` is a folder of notices/languages; NULL is the default of the installation. `email_off` and `push_off` are
-- the kinds (domain.notices.ORDER_KINDS) that the account does not want on a channel. No row: all defaults.
CREATE TABLE notice_preferences (
    user_id uuid PRIMARY KEY REFERENCES users ON DELETE CASCADE,
    language text CHECK (length(language) BETWEEN 2 AND 12),
    email_off text[] NOT NULL DEFAULT '{}' CHECK (cardinality(email_off) <= 32),
    push_off text[] NOT NULL DEFAULT '{}' CHECK (cardinality(push_off) <= 32),
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- A subscription of a browser (RFC 8030): the address of its push service, and its keys (RFC 8291).
CREATE TABLE push_subscriptions (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    endpoint text NOT NULL CHECK (length(endpoint) BETWEEN 10 AND 1000),
    p256dh bytea NOT NULL CHECK (length(p256dh) = 65),
    auth bytea NOT NULL CHECK (length(auth) = 16),
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT push_subscriptions_once UNIQUE (user_id, endpoint)
);
