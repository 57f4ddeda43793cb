-- Events of users: each change writes its event in its own transaction, whichever statement makes it. They hold no
-- address, no name and no secret. The format is in domain/schemas; a test compares. Creating triggers waits for writers
-- of the tables, for a moment.

-- The version of events: every change raises it.
ALTER TABLE users ADD COLUMN revision integer NOT NULL DEFAULT 1 CHECK (revision > 0);

-- domain.topology.outbox_partition.
CREATE FUNCTION event_partition(key uuid) RETURNS smallint
LANGUAGE sql STABLE STRICT PARALLEL SAFE
RETURN get_byte(sha256(convert_to(key::text, 'UTF8')), 0) % 16;

CREATE FUNCTION users_count_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.revision := OLD.revision + 1;
    RETURN NEW;
END
$$;

CREATE TRIGGER users_count_change BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION users_count_change();

CREATE FUNCTION user_told(kind text, account uuid, version integer, data jsonb) RETURNS void
LANGUAGE sql
BEGIN ATOMIC
    INSERT INTO outbox (destination, partition, events)
    VALUES (
        'events.users',
        event_partition(account),
        jsonb_build_array(
            jsonb_build_object(
                'id', account || ':' || version, 'type', kind, 'schema', 1, 'key', account, 'version', version,
                'time_ms', floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint,
                'data', jsonb_build_object('user_id', account) || data
            )
        )
    );
END;

CREATE FUNCTION user_facts(account users) RETURNS jsonb
LANGUAGE sql STABLE
RETURN jsonb_build_object(
    'role', account.role,
    'state', CASE WHEN account.verified_email_folded = account.email_folded THEN 'verified' ELSE 'unverified' END,
    'language', (SELECT language FROM notice_preferences WHERE user_id = account.id)
);

CREATE FUNCTION users_tell() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM user_told('user.erased', OLD.id, OLD.revision + 1, '{"state": "erased"}');
    ELSIF TG_OP = 'INSERT' THEN
        PERFORM user_told('user.registered', NEW.id, NEW.revision, user_facts(NEW));
    ELSIF user_facts(NEW) <> user_facts(OLD) THEN
        PERFORM user_told('user.changed', NEW.id, NEW.revision, user_facts(NEW));
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER users_tell AFTER INSERT OR UPDATE OR DELETE ON users FOR EACH ROW EXECUTE FUNCTION users_tell();

-- The language belongs to the user: a change of it raises the user's version.
CREATE FUNCTION notice_preferences_tell() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    account users;
BEGIN
    IF NEW.language IS DISTINCT FROM (CASE WHEN TG_OP = 'UPDATE' THEN OLD.language END) THEN
        UPDATE users SET name = name WHERE id = NEW.user_id RETURNING * INTO account;
        PERFORM user_told('user.changed', account.id, account.revision, user_facts(account));
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER notice_preferences_tell AFTER INSERT OR UPDATE ON notice_preferences
    FOR EACH ROW EXECUTE FUNCTION notice_preferences_tell();
