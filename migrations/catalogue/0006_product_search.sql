-- Full-text search over products, ranked and tolerant of typing errors.
--
-- Adding the generated column rewrites `products` under its exclusive lock, and CREATE INDEX keeps writers out: about ten
-- seconds for 100,000 products, in which the catalogue waits and orders do not, for they never read it. Both extensions are
-- trusted: the database's owner may create them. Old code names its columns and does not see the new one.

CREATE EXTENSION IF NOT EXISTS pg_trgm;
CREATE EXTENSION IF NOT EXISTS unaccent;

-- Words of a text as search compares them: no accents, small letters, nothing but letters and digits between single spaces.
-- Immutable as long as nobody changes the rules of `unaccent`. The database's locale must know letters: C.UTF-8 does.
CREATE FUNCTION search_fold(content text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN btrim(regexp_replace(lower(public.unaccent('public.unaccent'::regdictionary, content)), '[^[:alnum:]]+', ' ', 'g'));

-- Values of a product's attributes (their names are not searched), cut so that a vector never exceeds its 1 MB.
CREATE FUNCTION search_values(attributes jsonb) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (
    SELECT left(coalesce(string_agg(item #>> '{}', ' '), ''), 20000)
    FROM jsonb_path_query(attributes, '$.*[*] ? (@.type() == "string" || @.type() == "number")') AS item
);

-- Prose twice: as it is written, for prefixes and names; and by English stems, so that "lamps" finds a lamp.
CREATE FUNCTION search_prose(content text) RETURNS tsvector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN to_tsvector('pg_catalog.simple', content) || to_tsvector('pg_catalog.english', content);

-- Name over description over SKU and attributes.
CREATE FUNCTION search_vector(name text, description text, sku text, attributes jsonb) RETURNS tsvector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN setweight(search_prose(search_fold(name)), 'A')
    || setweight(search_prose(search_fold(description)), 'B')
    || setweight(to_tsvector('pg_catalog.simple', search_fold(sku || ' ' || search_values(attributes))), 'C');

ALTER TABLE products
    ADD COLUMN search tsvector NOT NULL GENERATED ALWAYS AS (search_vector(name, description, sku, attributes)) STORED;

-- `fastupdate` off: a change pays for its own index entries, instead of every search for a growing list of pending ones.
-- Names have an index of their own: what they match comes first, however many other products have the word elsewhere.
CREATE INDEX products_search ON products USING gin (search) WITH (fastupdate = off);
CREATE INDEX products_search_name ON products USING gin (ts_filter(search, '{a}')) WITH (fastupdate = off);

-- Words that products ever had: what a mistyped word is compared with. Words of removed products stay, and find nothing.
-- "C": prefixes are looked up in the primary key.
CREATE TABLE search_words (word text COLLATE "C" PRIMARY KEY);
CREATE INDEX search_words_similar ON search_words USING gin (word gin_trgm_ops) WITH (fastupdate = off);

CREATE FUNCTION search_remember() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    -- In order: two statements that bring the same words do not wait for each other in a circle.
    INSERT INTO search_words (word)
    SELECT DISTINCT found.word COLLATE "C" AS word
    FROM changed,
        string_to_table(search_fold(concat_ws(' ', name, description, sku, search_values(attributes))), ' ') AS found (word)
    WHERE length(found.word) BETWEEN 3 AND 40 AND found.word !~ '[0-9]'
        AND NOT EXISTS (SELECT FROM search_words AS known WHERE known.word = found.word COLLATE "C")
    ORDER BY word
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;

CREATE TRIGGER products_words_inserted AFTER INSERT ON products
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION search_remember();
CREATE TRIGGER products_words_updated AFTER UPDATE ON products
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION search_remember();

INSERT INTO search_words (word)
SELECT DISTINCT found.word
FROM products,
    string_to_table(search_fold(concat_ws(' ', name, description, sku, search_values(attributes))), ' ') AS found (word)
WHERE length(found.word) BETWEEN 3 AND 40 AND found.word !~ '[0-9]'
ON CONFLICT DO NOTHING;
