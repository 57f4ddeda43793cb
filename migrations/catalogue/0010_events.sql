-- Events of products and sales: each change writes its event in its own transaction, whichever statement makes it.
-- Triggers, because imports, commands, recovery and processes of the release before change these tables as well.
-- The formats are in domain/schemas; a test compares. Creating triggers waits for writers of the tables, for a moment.

-- As in the shards (0001): a row carries events for one (destination, partition), in order.
CREATE TABLE outbox (
    id bigserial PRIMARY KEY,
    destination text NOT NULL,
    partition smallint NOT NULL CHECK (partition BETWEEN 0 AND 15),
    events jsonb COMPRESSION lz4 NOT NULL CHECK (jsonb_typeof(events) = 'array'),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX outbox_next ON outbox (destination, partition, id);

-- domain.topology.outbox_partition.
CREATE FUNCTION event_partition(key uuid) RETURNS smallint
LANGUAGE sql STABLE STRICT PARALLEL SAFE
RETURN get_byte(sha256(convert_to(key::text, 'UTF8')), 0) % 16;

CREATE FUNCTION event_ms(moment timestamptz) RETURNS bigint
LANGUAGE sql STABLE STRICT PARALLEL SAFE
RETURN floor(extract(epoch FROM moment) * 1000)::bigint;

CREATE FUNCTION event_document(kind text, schema integer, key uuid, version integer, data jsonb) RETURNS jsonb
LANGUAGE sql STABLE PARALLEL SAFE
RETURN jsonb_build_object(
    'id', key || ':' || version, 'type', kind, 'schema', schema, 'key', key, 'version', version,
    'time_ms', event_ms(clock_timestamp()), 'data', data
);

-- Products: one statement of an import changes hundreds, and writes one row for each partition.
CREATE FUNCTION products_tell() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO outbox (destination, partition, events)
    SELECT 'events.products', event_partition(p.id), jsonb_agg(
        CASE WHEN TG_OP = 'DELETE'
            THEN event_document('product.deleted', 1, p.id, p.version + 1, jsonb_build_object('product_id', p.id, 'sku', p.sku))
            ELSE event_document(
                CASE WHEN TG_OP = 'INSERT' THEN 'product.created' ELSE 'product.changed' END, 1, p.id, p.version,
                jsonb_build_object(
                    'product_id', p.id, 'sku', p.sku, 'name', p.name, 'description', p.description,
                    'price_minor', p.price_minor, 'currency', p.currency, 'attributes', p.attributes, 'active', p.active
                )
            )
        END
    )
    FROM changed AS p
    GROUP BY event_partition(p.id);
    RETURN NULL;
END
$$;

CREATE TRIGGER products_tell_inserted AFTER INSERT ON products
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION products_tell();
CREATE TRIGGER products_tell_updated AFTER UPDATE ON products
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION products_tell();
CREATE TRIGGER products_tell_deleted AFTER DELETE ON products
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION products_tell();

-- Sales: `version` is that of the definition in lanes and edges, and not every change raises it. `revision` is the
-- version of events: every change raises it.
ALTER TABLE sales ADD COLUMN revision integer NOT NULL DEFAULT 1 CHECK (revision > 0);

CREATE FUNCTION sales_count_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.revision := OLD.revision + 1;
    RETURN NEW;
END
$$;

CREATE TRIGGER sales_count_change BEFORE UPDATE ON sales FOR EACH ROW EXECUTE FUNCTION sales_count_change();

-- Runs before the commit, when the items of a new or changed draft are there. Loading and the new epoch of a rebuild
-- are internal: they tell nothing.
CREATE FUNCTION sales_tell() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    kind text;
    event jsonb;
BEGIN
    IF TG_OP = 'DELETE' THEN
        event := event_document(
            'sale.deleted', 1, OLD.id, OLD.revision + 1, jsonb_build_object('sale_id', OLD.id, 'name', OLD.name)
        );
    ELSE
        IF TG_OP = 'INSERT' THEN
            kind := 'sale.created';
        ELSE
            kind := CASE
                WHEN NEW.stage = 'published' AND OLD.stage <> 'published' THEN 'sale.published'
                WHEN NEW.ended AND NOT OLD.ended THEN 'sale.ended'
                WHEN NEW.paused AND NOT OLD.paused THEN 'sale.paused'
                WHEN OLD.paused AND NOT NEW.paused THEN 'sale.resumed'
                WHEN NEW.version <> OLD.version AND NEW.epoch = OLD.epoch THEN 'sale.changed'
            END;
        END IF;
        IF kind IS NULL THEN
            RETURN NULL;
        END IF;
        event := event_document(
            kind, 1, NEW.id, NEW.revision,
            jsonb_build_object(
                'sale_id', NEW.id, 'name', NEW.name, 'stage', NEW.stage, 'paused', NEW.paused, 'ended', NEW.ended,
                'starts_at_ms', event_ms(NEW.starts_at), 'ends_at_ms', event_ms(NEW.ends_at),
                'hold_seconds', NEW.hold_seconds, 'currency', NEW.currency,
                'items', (
                    SELECT coalesce(
                        jsonb_agg(
                            jsonb_build_object(
                                'sku', sku, 'stock', stock, 'price_minor', price_minor, 'per_user_limit', per_user_limit
                            )
                            ORDER BY sku_index
                        ),
                        '[]'
                    )
                    FROM sale_items
                    WHERE sale_id = NEW.id
                )
            )
        );
    END IF;
    INSERT INTO outbox (destination, partition, events)
    VALUES ('events.sales', event_partition(coalesce(NEW.id, OLD.id)), jsonb_build_array(event));
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER sales_tell AFTER INSERT OR UPDATE OR DELETE ON sales
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sales_tell();

-- A restock raises the sale's version, so that its event has a place among the others.
CREATE FUNCTION restocks_tell() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    raised integer;
BEGIN
    UPDATE sales SET name = name WHERE id = NEW.sale_id RETURNING revision INTO raised;
    INSERT INTO outbox (destination, partition, events)
    VALUES (
        'events.sales',
        event_partition(NEW.sale_id),
        jsonb_build_array(
            event_document(
                'sale.restocked', 1, NEW.sale_id, raised,
                jsonb_build_object('sale_id', NEW.sale_id, 'sku', NEW.sku, 'quantity', NEW.quantity)
            )
        )
    );
    RETURN NULL;
END
$$;

CREATE TRIGGER restocks_tell AFTER INSERT ON restocks FOR EACH ROW EXECUTE FUNCTION restocks_tell();
