-- The audit log: one entry for each change of the catalogue by a person or an operator, and for refusals. In a schema
-- of its own and without foreign keys, so an entry outlives its object. Shards have the same table for accounts.
CREATE SCHEMA audit;

-- `id` is a UUIDv7, in the order of time. `actor` is a user id, or `anonymous`, `backoffice`, `operator:NAME`. `object`
-- is `kind:id`. `before` and `after` hold the changed members only, and never personal data. `outcome` is `done` or the
-- code of the refusal; `times` counts refusals that were put together.
CREATE TABLE audit.entries (
    id uuid PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor text NOT NULL CHECK (length(actor) BETWEEN 1 AND 100),
    action text NOT NULL CHECK (length(action) BETWEEN 1 AND 100),
    object text NOT NULL CHECK (length(object) BETWEEN 1 AND 300),
    before json,
    after json,
    client text CHECK (length(client) <= 100),
    request_id text CHECK (length(request_id) <= 100),
    outcome text NOT NULL CHECK (length(outcome) BETWEEN 1 AND 100),
    times integer NOT NULL DEFAULT 1 CHECK (times > 0)
);
CREATE INDEX entries_actor ON audit.entries (actor, id);
CREATE INDEX entries_action ON audit.entries (action, id);
CREATE INDEX entries_object ON audit.entries (object, id);

-- Entries never change. Only entries of more than 28 days can be deleted; the setting of the retention is longer.
CREATE FUNCTION audit.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit.entries is append-only: % is refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE FUNCTION audit.refuse_early_delete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.at > now() - interval '28 days' THEN
        RAISE EXCEPTION 'audit.entries is append-only: an entry of less than 28 days cannot be deleted'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER entries_never_change BEFORE UPDATE OR TRUNCATE ON audit.entries
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
CREATE TRIGGER entries_are_kept BEFORE DELETE ON audit.entries
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_early_delete();
