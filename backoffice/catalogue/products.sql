-- name: insert
-- Unique index on the SKU. No row: the SKU is taken.
INSERT INTO products (id, sku, name, description, price_minor, currency, attributes, active)
VALUES (%(id)s, %(sku)s, %(name)s, %(description)s, %(price_minor)s, %(currency)s, %(attributes)s, %(active)s)
ON CONFLICT (sku) DO NOTHING
RETURNING id, sku, name, description, price_minor, currency, attributes, active, version;

-- name: get
-- Primary key.
SELECT id, sku, name, description, price_minor, currency, attributes, active, version FROM products WHERE id = %(id)s;

-- name: lock
-- Primary key. Locks the product until its change commits; the change is recorded with the values of before.
SELECT id, sku, name, description, price_minor, currency, attributes, active, version
FROM products WHERE id = %(id)s FOR UPDATE;

-- name: page
-- Primary key, newest first.
SELECT id, sku, name, description, price_minor, currency, attributes, active, version
FROM products
WHERE (%(before)s::uuid IS NULL OR id < %(before)s)
  AND (%(active)s::boolean IS NULL OR active = %(active)s)
ORDER BY id DESC LIMIT %(limit)s;

-- name: update
-- Primary key, compare-and-set on the version: a repeat finds another version and changes nothing. NULL: any version.
UPDATE products SET
    sku = coalesce(%(sku)s, sku),
    name = coalesce(%(name)s, name),
    description = coalesce(%(description)s, description),
    price_minor = coalesce(%(price_minor)s, price_minor),
    currency = coalesce(%(currency)s, currency),
    attributes = coalesce(%(attributes)s::jsonb, attributes),
    active = coalesce(%(active)s, active),
    version = version + 1,
    changed_at = now()
WHERE id = %(id)s AND (%(versions)s::int[] IS NULL OR version = ANY (%(versions)s))
RETURNING id, sku, name, description, price_minor, currency, attributes, active, version;

-- name: delete
-- Primary key, compare-and-set on the version. NULL: any version.
DELETE FROM products
WHERE id = %(id)s AND (%(versions)s::int[] IS NULL OR version = ANY (%(versions)s))
RETURNING id, sku, name, description, price_minor, currency, attributes, active, version;
