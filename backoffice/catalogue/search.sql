-- name: interpret
-- Reads only. The tsquery of a text; no row for a text without a word, NULL if a word is neither known nor similar to a
-- known one. The last word is a prefix. An unknown word is replaced by the most similar known one: two adjacent letters
-- swapped, else by trigrams. Primary key of search_words for known words, index search_words_similar for similar ones.
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
-- Reads only. Products with a match in the name, or with the text as SKU: the SKU first, then by ts_rank, then newest
-- first. Indexes products_search_name and products_sku_key; for a word of very many names the primary key backwards,
-- until %(ranked_max)s products are found, so that the newest ones are ranked.
-- The last condition always holds. It is there for its cost: the planner rates a match against a tsvector as cheap as
-- one of numbers, and would walk all products backwards for a word that one in a hundred has.
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
-- Reads only. Other products that match in any part, ranked as in search_names: matches in name and description come
-- first. Index products_search.
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
