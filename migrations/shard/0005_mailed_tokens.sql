-- Tokens of mailed links: one a user and purpose, so that a new one voids the one before. `purpose` is
-- domain.notices.NoticeKind; `notice_id` is the notice that asked for it (time-ordered: an older one never replaces a newer).
-- `email_folded` is where it was sent: it proves that address and no other.
CREATE TABLE mailed_tokens (
    user_id      uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    purpose      text NOT NULL CHECK (purpose IN ('verify_email', 'password_reset')),
    notice_id    uuid NOT NULL,
    secret_hash  bytea NOT NULL CHECK (length(secret_hash) = 32),  -- SHA-256 of the token's 32 random bytes
    email_folded text NOT NULL,
    expires_at   timestamptz NOT NULL,
    used_at      timestamptz,
    PRIMARY KEY (user_id, purpose)
);

-- The address that a mailed token has proved: verified is who still has it, so a change of address needs no second write.
ALTER TABLE users ADD COLUMN verified_email_folded text;
