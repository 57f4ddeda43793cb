-- name: interpret
-- Reads only. What a text asks for as a tsquery; no row when it has no word, NULL when one of its words is neither known nor
-- like a known one. The last word is a prefix. An unknown word becomes the most similar known one: two neighbouring letters
-- swapped, else by trigrams. Known words are looked up in the primary key of search_words, similar ones in search_words_similar.
WITH asked AS MATERIALIZED (
    SELECT word COLLATE "C" AS word, place, place = max(place) OVER () AND length(word) > 1 AS is_prefix,
        (ts_lexize('english_stem', word))[1] COLLATE "C" AS stem,  -- NULL for a stop word, such as "the"
        bool_and(cardinality(ts_lexize('english_stem', word)) = 0) OVER () AS only_stop_words
    FROM string_to_table(search_fold(%(text)s::text), ' ') WITH ORDINALITY AS folded (word, place)
    WHERE word <> ''
    ORDER BY place
    LIMIT %(words_max)s
), spelt AS MATERIALIZED (
    SELECT asked.*,
        CASE
            WHEN word ~ '[0-9]' OR length(word) NOT BETWEEN 3 AND 40
                OR EXISTS (SELECT FROM search_words AS known WHERE known.word IN (asked.word, asked.stem))
                OR is_prefix AND EXISTS (
                    SELECT FROM search_words AS known
                    WHERE known.word > asked.word AND known.word < asked.word || chr(1114111)
                )
                OR stem <> word AND EXISTS (
                    SELECT FROM search_words AS known
                    WHERE known.word > asked.stem AND known.word < asked.stem || chr(1114111)
                )
            THEN ARRAY[word]
            ELSE ARRAY(
                SELECT known.word
                FROM search_words AS known
                WHERE known.word %% asked.word OR known.word = ANY (swapped.words)
                ORDER BY known.word = ANY (swapped.words) DESC, similarity(known.word, asked.word) DESC
                FETCH FIRST ROW WITH TIES
            )
        END AS meant
    FROM asked
    CROSS JOIN LATERAL (
        SELECT ARRAY(
            SELECT (left(word, n - 1) || substr(word, n + 1, 1) || substr(word, n, 1) || substr(word, n + 2)) COLLATE "C"
            FROM generate_series(1, least(length(word), 40) - 1) AS n
        ) AS words
    ) AS swapped
    WHERE stem IS NOT NULL OR only_stop_words
), phrased AS (
    SELECT place,
        (
            SELECT string_agg(to_tsquery('simple', quote_literal(one) || CASE WHEN is_prefix THEN ':*' ELSE '' END)::text, ' | ')
            FROM unnest(meant[1:%(similar_max)s]) AS one
        ) || CASE WHEN stem <> word AND meant[1] = word THEN ' | ' || quote_literal(stem) ELSE '' END AS query
    FROM spelt
)
SELECT CASE WHEN bool_and(query IS NOT NULL) THEN string_agg('(' || query || ')', ' & ' ORDER BY place) END
FROM phrased
HAVING count(*) > 0;

-- name: search_names
-- Reads only. The planner takes a look at a tsvector for as cheap as one at a number, and would walk all products backwards
-- for a word that one in a hundred has: a condition that always holds and that it takes for dear tells it otherwise.
-- Products whose name matches, or whose SKU was asked for as it is written. Indexes products_search_name and
-- products_sku_key; for a word of very many names the primary key backwards, until %(ranked_max)s are found: the newest are
-- ranked. The SKU first, then by ts_rank, then newest first.
WITH matches AS (
    SELECT id, 4 + ts_rank(search, %(query)s::tsquery)::real + CASE WHEN sku = ANY (%(skus)s) THEN 4 ELSE 0 END AS rank
    FROM products
    WHERE (ts_filter(search, '{a}') @@ %(query)s::tsquery OR sku = ANY (%(skus)s))
        AND (%(active)s::boolean IS NULL OR active = %(active)s)
        AND plainto_tsquery('simple', sku) IS NOT NULL
    ORDER BY id DESC
    LIMIT %(ranked_max)s
), shown AS (
    SELECT id, rank::real AS rank
    FROM matches
    WHERE %(rank)s::real IS NULL OR (rank::real, id) < (%(rank)s::real, %(before)s::uuid)
    ORDER BY rank DESC, id DESC
    LIMIT %(limit)s
)
SELECT products.id, sku, name, description, price_minor, currency, attributes, active, version, shown.rank
FROM shown JOIN products USING (id)
ORDER BY shown.rank DESC, products.id DESC;

-- name: search_elsewhere
-- Reads only. Products that match as a whole and not by their name alone, as search_names does; index products_search. Those
-- that match by name and description first.
WITH matches AS (
    SELECT id,
        ts_rank(search, %(query)s::tsquery)::real
            + CASE WHEN ts_filter(search, '{a,b}') @@ %(query)s::tsquery THEN 2 ELSE 0 END AS rank
    FROM products
    WHERE search @@ %(query)s::tsquery AND NOT ts_filter(search, '{a}') @@ %(query)s::tsquery AND sku <> ALL (%(skus)s)
        AND (%(active)s::boolean IS NULL OR active = %(active)s)
        AND plainto_tsquery('simple', sku) IS NOT NULL
    ORDER BY id DESC
    LIMIT %(ranked_max)s
), shown AS (
    SELECT id, rank::real AS rank
    FROM matches
    WHERE %(rank)s::real IS NULL OR (rank::real, id) < (%(rank)s::real, %(before)s::uuid)
    ORDER BY rank DESC, id DESC
    LIMIT %(limit)s
)
SELECT products.id, sku, name, description, price_minor, currency, attributes, active, version, shown.rank
FROM shown JOIN products USING (id)
ORDER BY shown.rank DESC, products.id DESC;
