-- Which buckets this shard must not write: the fence of a move. A writing transaction enters its buckets under a shared
-- lock and keeps it to its end; closing a bucket takes the lock alone. So no row of a closed bucket is written by a
-- process with an old map, of whatever release.

-- `frozen`: the bucket is about to leave; this shard is still its owner. `elsewhere`: another shard is. `arriving`: its
-- rows are being copied here. A bucket without a row is open. `shard` is the shard to ask: the owner, or the next one.
CREATE TABLE closed_buckets (
    bucket smallint PRIMARY KEY CHECK (bucket BETWEEN 0 AND 1023),
    state text NOT NULL CHECK (state IN ('frozen', 'elsewhere', 'arriving')),
    shard smallint NOT NULL CHECK (shard >= 0),
    token uuid,
    since timestamptz NOT NULL DEFAULT now()
);

-- An address has no user id to compute a bucket from. NULL: written before this migration; `flashsale shards` fills it
-- in.
ALTER TABLE login_index ADD COLUMN bucket smallint CHECK (bucket BETWEEN 0 AND 1023);

-- domain.topology.bucket_of_user. The bucket is bits 0..9 and 29..38 of the hash, which depend on its low 39 bits only.
CREATE FUNCTION bucket_of_user(user_id uuid) RETURNS smallint
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    bytes CONSTANT bytea := uuid_send(user_id);
    hash bigint := 431713559333;
BEGIN
    FOR place IN 0..15 LOOP
        hash := ((hash # get_byte(bytes, place)) * 435) & 549755813887;
    END LOOP;
    RETURN (hash # (hash >> 29)) & 1023;
END
$$;

-- domain.ids.bucket_of.
CREATE FUNCTION bucket_of_order(order_id uuid) RETURNS smallint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (((get_byte(uuid_send(order_id), 8) & 63) << 4) | (get_byte(uuid_send(order_id), 9) >> 4))::smallint;

-- Enters buckets for the rest of the transaction; those of them that are closed here, with their states. The caller
-- writes no row of a closed one, so its rows are not checked once more.
CREATE FUNCTION enter_buckets(wanted smallint[]) RETURNS TABLE (bucket smallint, state text, shard smallint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'a snapshot from before the lock would not see a closed bucket: use READ COMMITTED';
    END IF;
    PERFORM pg_advisory_xact_lock_shared(27713617581667443);
    PERFORM set_config('flashsale.buckets', 'entered', true);
    RETURN QUERY SELECT c.bucket, c.state, c.shard FROM closed_buckets c WHERE c.bucket = ANY(wanted);
END
$$;

-- The same for statements that enter no bucket: one check for each row. SQLSTATE 55B01 is an operational error: repeat
-- on the owner. DETAIL is the shard to ask.
CREATE FUNCTION check_bucket() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    changed record;
    place smallint;
    closed closed_buckets;
BEGIN
    IF TG_OP = 'DELETE' THEN
        changed := OLD;
    ELSE
        changed := NEW;
    END IF;
    CASE TG_ARGV[0]
        WHEN 'bucket' THEN place := changed.bucket;
        WHEN 'user' THEN place := bucket_of_user(changed.user_id);
        WHEN 'order' THEN place := bucket_of_order(changed.order_id);
        WHEN 'family' THEN
            SELECT bucket_of_user(f.user_id) INTO place FROM refresh_families f WHERE f.id = changed.family_id;
    END CASE;
    PERFORM pg_advisory_xact_lock_shared(27713617581667443);
    SELECT * INTO closed FROM closed_buckets c WHERE c.bucket = place;
    IF FOUND THEN
        RAISE EXCEPTION 'bucket % is closed in this shard: %', place, closed.state
            USING ERRCODE = '55B01', DETAIL = closed.shard::text;
    END IF;
    RETURN changed;
END
$$;

CREATE TRIGGER check_bucket BEFORE INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW
    WHEN (current_setting('flashsale.buckets', true) IS DISTINCT FROM 'entered') EXECUTE FUNCTION check_bucket('bucket');
CREATE TRIGGER check_bucket BEFORE INSERT OR UPDATE OR DELETE ON order_transitions FOR EACH ROW
    WHEN (current_setting('flashsale.buckets', true) IS DISTINCT FROM 'entered') EXECUTE FUNCTION check_bucket('order');
CREATE TRIGGER check_bucket BEFORE INSERT OR UPDATE OR DELETE ON payments FOR EACH ROW
    WHEN (current_setting('flashsale.buckets', true) IS DISTINCT FROM 'entered') EXECUTE FUNCTION check_bucket('order');
CREATE TRIGGER check_bucket BEFORE INSERT OR UPDATE OR DELETE ON refunds FOR EACH ROW
    WHEN (current_setting('flashsale.buckets', true) IS DISTINCT FROM 'entered') EXECUTE FUNCTION check_bucket('order');
CREATE TRIGGER check_bucket BEFORE INSERT OR UPDATE OR DELETE ON refunded_lines FOR EACH ROW
    WHEN (current_setting('flashsale.buckets', true) IS DISTINCT FROM 'entered') EXECUTE FUNCTION check_bucket('order');
CREATE TRIGGER check_bucket BEFORE INSERT OR UPDATE OR DELETE ON users FOR EACH ROW
    WHEN (current_setting('flashsale.buckets', true) IS DISTINCT FROM 'entered') EXECUTE FUNCTION check_bucket('bucket');
CREATE TRIGGER check_bucket BEFORE INSERT OR UPDATE OR DELETE ON login_index FOR EACH ROW
    WHEN (current_setting('flashsale.buckets', true) IS DISTINCT FROM 'entered') EXECUTE FUNCTION check_bucket('bucket');
CREATE TRIGGER check_bucket BEFORE INSERT OR UPDATE OR DELETE ON refresh_families FOR EACH ROW
    WHEN (current_setting('flashsale.buckets', true) IS DISTINCT FROM 'entered') EXECUTE FUNCTION check_bucket('user');
CREATE TRIGGER check_bucket BEFORE INSERT OR UPDATE ON refresh_tokens FOR EACH ROW
    WHEN (current_setting('flashsale.buckets', true) IS DISTINCT FROM 'entered') EXECUTE FUNCTION check_bucket('family');
CREATE TRIGGER check_bucket BEFORE INSERT OR UPDATE OR DELETE ON mailed_tokens FOR EACH ROW
    WHEN (current_setting('flashsale.buckets', true) IS DISTINCT FROM 'entered') EXECUTE FUNCTION check_bucket('user');
CREATE TRIGGER check_bucket BEFORE INSERT OR UPDATE OR DELETE ON mailed_links FOR EACH ROW
    WHEN (current_setting('flashsale.buckets', true) IS DISTINCT FROM 'entered') EXECUTE FUNCTION check_bucket('user');
CREATE TRIGGER check_bucket BEFORE INSERT OR UPDATE OR DELETE ON login_releases FOR EACH ROW
    WHEN (current_setting('flashsale.buckets', true) IS DISTINCT FROM 'entered') EXECUTE FUNCTION check_bucket('user');
CREATE TRIGGER check_bucket BEFORE INSERT OR UPDATE OR DELETE ON erasures FOR EACH ROW
    WHEN (current_setting('flashsale.buckets', true) IS DISTINCT FROM 'entered') EXECUTE FUNCTION check_bucket('user');
CREATE TRIGGER check_bucket BEFORE INSERT OR UPDATE OR DELETE ON session_ends FOR EACH ROW
    WHEN (current_setting('flashsale.buckets', true) IS DISTINCT FROM 'entered') EXECUTE FUNCTION check_bucket('user');
CREATE TRIGGER check_bucket BEFORE INSERT OR UPDATE OR DELETE ON notice_preferences FOR EACH ROW
    WHEN (current_setting('flashsale.buckets', true) IS DISTINCT FROM 'entered') EXECUTE FUNCTION check_bucket('user');
CREATE TRIGGER check_bucket BEFORE INSERT OR UPDATE OR DELETE ON push_subscriptions FOR EACH ROW
    WHEN (current_setting('flashsale.buckets', true) IS DISTINCT FROM 'entered') EXECUTE FUNCTION check_bucket('user');

-- Rows that move between shards are no news: `flashsale shards` sets flashsale.moving in its transactions.
DROP TRIGGER users_tell ON users;
CREATE TRIGGER users_tell AFTER INSERT OR UPDATE OR DELETE ON users FOR EACH ROW
    WHEN (current_setting('flashsale.moving', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION users_tell();
DROP TRIGGER notice_preferences_tell ON notice_preferences;
CREATE TRIGGER notice_preferences_tell AFTER INSERT OR UPDATE ON notice_preferences FOR EACH ROW
    WHEN (current_setting('flashsale.moving', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION notice_preferences_tell();
CREATE INDEX login_index_without_bucket ON login_index (email_folded) WHERE bucket IS NULL;
