-- name: compare
-- Reads only. Which of the given products are there, and which of them would differ. Unique index of the SKUs.
WITH given AS (
    SELECT * FROM jsonb_to_recordset(%(items)s) AS given (
        sku text, name text, description text, price_minor bigint, currency text, attributes jsonb, active boolean
    )
)
SELECT sku, id,
    NOT (
        coalesce(given.name = old.name, true)
        AND coalesce(given.description = old.description, true)
        AND coalesce(given.price_minor = old.price_minor, true)
        AND coalesce(given.currency = old.currency, true)
        AND coalesce(given.attributes = old.attributes, true)
        AND coalesce(given.active = old.active, true)
    ) AS differs
FROM given JOIN products AS old USING (sku);

-- name: lock
-- In the order of SKUs: two imports wait for each other in no circle. Unique index of the SKUs.
SELECT id FROM products WHERE sku = ANY (%(skus)s) ORDER BY sku FOR UPDATE;

-- name: upsert
-- Repeating it finds nothing that differs and changes nothing, no version either. Members that are NULL stay as they are.
-- Only products whose id is among %(told)s change: those of which caches were told. Unique index of the SKUs.
WITH given AS (
    SELECT * FROM jsonb_to_recordset(%(items)s) AS given (
        id uuid, sku text, name text, description text, price_minor bigint, currency text, attributes jsonb, active boolean
    )
), compared AS (
    SELECT given.*, old.id AS old_id,
        NOT (
            coalesce(given.name = old.name, true)
            AND coalesce(given.description = old.description, true)
            AND coalesce(given.price_minor = old.price_minor, true)
            AND coalesce(given.currency = old.currency, true)
            AND coalesce(given.attributes = old.attributes, true)
            AND coalesce(given.active = old.active, true)
        ) AS differs
    FROM given LEFT JOIN products AS old USING (sku)
), updated AS (
    UPDATE products SET
        name = coalesce(compared.name, products.name),
        description = coalesce(compared.description, products.description),
        price_minor = coalesce(compared.price_minor, products.price_minor),
        currency = coalesce(compared.currency, products.currency),
        attributes = coalesce(compared.attributes, products.attributes),
        active = coalesce(compared.active, products.active),
        version = products.version + 1,
        changed_at = now()
    FROM compared
    WHERE products.id = compared.old_id AND compared.differs AND products.id = ANY (%(told)s)
    RETURNING products.sku
), created AS (
    INSERT INTO products (id, sku, name, description, price_minor, currency, attributes, active)
    SELECT id, sku, name, coalesce(description, ''), price_minor, currency, coalesce(attributes, '{}'), coalesce(active, true)
    FROM compared
    WHERE old_id IS NULL AND name IS NOT NULL AND price_minor IS NOT NULL AND currency IS NOT NULL
    ORDER BY sku
    ON CONFLICT (sku) DO NOTHING
    RETURNING sku
)
SELECT compared.sku,
    CASE
        WHEN updated.sku IS NOT NULL THEN 'updated'
        WHEN created.sku IS NOT NULL THEN 'created'
        WHEN old_id IS NOT NULL AND NOT differs THEN 'unchanged'
        ELSE 'overtaken'
    END
FROM compared LEFT JOIN updated USING (sku) LEFT JOIN created USING (sku);
