-- `generation` grows with each end of a user's sessions, and each access token carries the generation of its time: an
-- end and a token are compared without a clock. It is about the time of the end in Unix ms. Processes of the former
-- release write `not_before` only, so the generation of a row is the greater of `generation` and `not_before * 1000`.
ALTER TABLE session_ends ADD COLUMN generation bigint NOT NULL DEFAULT 0 CHECK (generation >= 0);

-- Tokens of mailed links, many for a user and purpose, so that a new one does not void the ones before. In place of
-- `mailed_tokens`, which stays for processes of the former release. `purpose` is domain.notices.NoticeKind; `notice_id`
-- is the notice of the letter (a UUIDv7). `email_folded` is the address of the letter: the token proves that address
-- and no other.
CREATE TABLE mailed_links (
    user_id      uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    purpose      text NOT NULL CHECK (purpose IN ('verify_email', 'password_reset', 'email_changed')),
    notice_id    uuid NOT NULL,
    secret_hash  bytea NOT NULL CHECK (length(secret_hash) = 32),  -- SHA-256 of the token's 32 random bytes
    email_folded text NOT NULL,
    expires_at   timestamptz NOT NULL,
    used_at      timestamptz,
    PRIMARY KEY (user_id, purpose, notice_id)
);
INSERT INTO mailed_links (user_id, purpose, notice_id, secret_hash, email_folded, expires_at, used_at)
SELECT user_id, purpose, notice_id, secret_hash, email_folded, expires_at, used_at FROM mailed_tokens;
