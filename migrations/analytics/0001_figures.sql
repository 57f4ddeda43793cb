-- Figures of sales: counts per second and per minute, counted from the event log. The worker `analytics` writes them.
-- The schema `figures` holds one generation of them; a rebuild fills `figures_next`, which then takes its place.

-- Makes an empty generation. All tables are partitioned by the day of the event (UTC), so a day goes with one DROP.
CREATE FUNCTION make_generation(space text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE SCHEMA %I', space);
    -- One row for each event that is counted, so that an event counts once however often it is read. `id` is the
    -- order's, or made from the event's; `change` is the status of the order, or the kind of the payment event.
    EXECUTE format('CREATE TABLE %I.counted (
        id uuid NOT NULL,
        change smallint NOT NULL,
        day date NOT NULL,
        PRIMARY KEY (id, change, day)
    ) PARTITION BY RANGE (day)', space);
    -- By second and by minute of the event. `orders`, `units` and `orders_minor` are of reserved orders, and
    -- `revenue_minor` is of paid ones. Money is in minor units of the currency.
    EXECUTE format('CREATE TABLE %I.seconds (
        sale_id uuid NOT NULL,
        at timestamptz NOT NULL,
        currency text NOT NULL,
        orders bigint NOT NULL,
        units bigint NOT NULL,
        orders_minor bigint NOT NULL,
        paid bigint NOT NULL,
        paid_units bigint NOT NULL,
        revenue_minor bigint NOT NULL,
        cancelled bigint NOT NULL,
        expired bigint NOT NULL,
        rejected bigint NOT NULL,
        refunds bigint NOT NULL,
        refunded_minor bigint NOT NULL,
        PRIMARY KEY (sale_id, at, currency)
    ) PARTITION BY RANGE (at)', space);
    EXECUTE format('CREATE TABLE %1$I.minutes (LIKE %1$I.seconds INCLUDING DEFAULTS,
        PRIMARY KEY (sale_id, at, currency)) PARTITION BY RANGE (at)', space);
    -- Units of a SKU that were reserved, and that came back by a cancellation or an expiry, by second, with the times
    -- of the second's first and last reservation.
    EXECUTE format('CREATE TABLE %I.sku_seconds (
        sale_id uuid NOT NULL,
        sku text NOT NULL,
        at timestamptz NOT NULL,
        reserved bigint NOT NULL,
        returned bigint NOT NULL,
        first_reserved_at timestamptz,
        last_reserved_at timestamptz,
        PRIMARY KEY (sale_id, sku, at)
    ) PARTITION BY RANGE (at)', space);
    -- Time from reserved to paid, as a histogram by minute of the payment. `step`: see workers.analytics.tally.
    EXECUTE format('CREATE TABLE %I.pay_times (
        sale_id uuid NOT NULL,
        at timestamptz NOT NULL,
        step smallint NOT NULL,
        orders bigint NOT NULL,
        PRIMARY KEY (sale_id, at, step)
    ) PARTITION BY RANGE (at)', space);
    -- The last record of the event log that is in the figures, changed in their transaction; -1: none.
    EXECUTE format('CREATE TABLE %I.positions (
        carrier text NOT NULL,
        topic text NOT NULL,
        partition smallint NOT NULL,
        last_offset bigint NOT NULL,
        PRIMARY KEY (carrier, topic, partition)
    )', space);
    -- All events of a topic until `as_of` are in the figures.
    EXECUTE format('CREATE TABLE %I.progress (
        topic text PRIMARY KEY,
        as_of timestamptz NOT NULL,
        lag_records bigint NOT NULL,
        changed_at timestamptz NOT NULL DEFAULT now()
    )', space);
END $$;

-- Makes the partitions of a day in a schema, of every partitioned table there. Repeating it changes nothing.
CREATE FUNCTION make_day(space text, day date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    parent text;
    is_date boolean;
    name text;
BEGIN
    FOR parent, is_date IN
        SELECT c.relname, a.atttypid = 'date'::regtype
        FROM pg_class c JOIN pg_partitioned_table p ON p.partrelid = c.oid
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0]
        WHERE c.relnamespace = space::regnamespace AND c.relkind = 'p'
        ORDER BY c.relname
    LOOP
        name := format('%s_%s', parent, to_char(day, 'YYYYMMDD'));
        CONTINUE WHEN to_regclass(format('%I.%I', space, name)) IS NOT NULL;
        IF is_date THEN
            EXECUTE format('CREATE TABLE %I.%I PARTITION OF %I.%I FOR VALUES FROM (%L) TO (%L)',
                space, name, space, parent, day, day + 1);
        ELSE
            EXECUTE format('CREATE TABLE %I.%I PARTITION OF %I.%I FOR VALUES FROM (%L) TO (%L)',
                space, name, space, parent, day || ' 00:00:00+00', day + 1 || ' 00:00:00+00');
        END IF;
    END LOOP;
END $$;

-- The partitions of a schema with their parent and day.
CREATE FUNCTION days_of(space text) RETURNS TABLE (parent text, name text, day date) LANGUAGE sql STABLE AS $$
    SELECT p.relname::text, c.relname::text, to_date(right(c.relname, 8), 'YYYYMMDD')
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
    WHERE c.relnamespace = space::regnamespace AND c.relkind = 'r'
    ORDER BY 3, 1
$$;

SELECT make_generation('figures');

-- Orders that were refused, by second of the sample. Edges count them in Redis, not in the event log, so a rebuild
-- leaves these tables alone. `refusal_samples` is the count at the last sample: the next one adds the difference.
CREATE SCHEMA refused;
CREATE TABLE refused.refusals (
    sale_id uuid NOT NULL,
    at timestamptz NOT NULL,
    code text NOT NULL CHECK (length(code) BETWEEN 1 AND 60),
    orders bigint NOT NULL,
    PRIMARY KEY (sale_id, at, code)
) PARTITION BY RANGE (at);
CREATE TABLE refused.samples (
    sale_id uuid NOT NULL,
    code text NOT NULL CHECK (length(code) BETWEEN 1 AND 60),
    orders bigint NOT NULL,
    PRIMARY KEY (sale_id, code)
);
