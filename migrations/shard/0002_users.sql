-- Accounts. `users`, `refresh_*` live in the shard of the user's virtual bucket, `login_index` in that of the
-- folded address's hash, so a registration claims the address first and then makes the user.

CREATE TABLE users (
    id            uuid PRIMARY KEY,
    bucket        smallint NOT NULL CHECK (bucket BETWEEN 0 AND 1023),
    email         text NOT NULL CHECK (length(email) BETWEEN 3 AND 254),
    email_folded  text NOT NULL,
    name          text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    password_hash text NOT NULL,
    role          text NOT NULL CHECK (role IN ('buyer', 'staff', 'admin')),
    version       integer NOT NULL DEFAULT 1 CHECK (version > 0),
    created_at    timestamptz NOT NULL DEFAULT now(),
    changed_at    timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX users_bucket ON users (bucket);

-- `confirmed` follows when the user's row is there; an unconfirmed claim of a crashed registration may be taken over.
CREATE TABLE login_index (
    email_folded text PRIMARY KEY,
    user_id      uuid NOT NULL,
    confirmed    boolean NOT NULL DEFAULT false,
    claimed_at   timestamptz NOT NULL DEFAULT now()
);

-- A family is one login; its tokens replace one another.
CREATE TABLE refresh_families (
    id         uuid PRIMARY KEY,
    user_id    uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz
);

CREATE INDEX refresh_families_user ON refresh_families (user_id);

CREATE TABLE refresh_tokens (
    id          uuid PRIMARY KEY,
    family_id   uuid NOT NULL REFERENCES refresh_families ON DELETE CASCADE,
    secret_hash bytea NOT NULL CHECK (length(secret_hash) = 32),  -- SHA-256 of the token's 32 random bytes
    created_at  timestamptz NOT NULL DEFAULT now(),
    used_at     timestamptz
);

CREATE INDEX refresh_tokens_family ON refresh_tokens (family_id);
