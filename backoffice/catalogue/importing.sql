-- name: compare
-- Reads only. Existing products among the given ones, and whether they would change. Unique index on the SKU.
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
-- Locks in SKU order, so that two imports cannot deadlock. Unique index on the SKU.
SELECT id, sku, name, description, price_minor, currency, attributes, active, version
FROM products WHERE sku = ANY (%(skus)s) ORDER BY sku FOR UPDATE;

-- name: upsert
-- Repeating changes nothing, not even a version: no product differs any more. Members that are NULL stay unchanged.
-- Only products in %(changing)s change: caches know of these changes. Unique index on the SKU.
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
    WHERE products.id = compared.old_id AND compared.differs AND products.id = ANY (%(changing)s)
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
