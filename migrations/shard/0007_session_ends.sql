-- Since when a user's access tokens count: those with an earlier `iat` are refused. Not a column of `users`, since it must outlive
-- an erased account, and buyers of an outside issuer have none. Rows older than any token's life are deleted.
CREATE TABLE session_ends (
    user_id    uuid PRIMARY KEY,
    not_before bigint NOT NULL CHECK (not_before > 0)  -- Unix seconds, as `iat`
);
CREATE INDEX session_ends_not_before ON session_ends (not_before);
