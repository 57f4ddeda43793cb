-- Accounts that change their address, and accounts that go.

-- Entries of the login index that a user may have left behind: noted in the transaction that makes them so, removed when
-- the index agrees. The entry may be in another shard, so a crash between the two leaves work, and here it is found.
CREATE TABLE login_releases (
    user_id      uuid NOT NULL,
    email_folded text NOT NULL,
    noted_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, email_folded)
);
CREATE INDEX login_releases_noted ON login_releases (noted_at);

-- What stays of an erased account: that it was, and by whom it was erased. `finished_at` follows when nothing is left to
-- be done outside of this shard.
CREATE TABLE erasures (
    user_id     uuid PRIMARY KEY,
    erased_by   uuid NOT NULL,
    erased_at   timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz
);
CREATE INDEX erasures_unfinished ON erasures (erased_at) WHERE finished_at IS NULL;

-- Claims whose registration or change of address crashed.
CREATE INDEX login_index_unconfirmed ON login_index (claimed_at) WHERE NOT confirmed;

-- The few among the many: lists of staff, and whether there is another administrator.
CREATE INDEX users_of_staff ON users (role, id) WHERE role <> 'buyer';
