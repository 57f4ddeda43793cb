"""A catalogue for measurements: words as frequent as in a shop, the same products in every run."""

from __future__ import annotations

from typing import Any

import psycopg


def _words(text: str) -> list[str]:
    return text.split()


NOUNS = _words(
    "lamp chair table sofa desk shelf mirror carpet curtain pillow blanket mattress kettle toaster blender mixer "
    "oven fridge pan pot knife fork spoon plate bowl glass mug bottle backpack suitcase wallet belt jacket shirt "
    "trousers dress skirt sweater coat boots sneakers sandals scarf gloves hat watch ring necklace earrings "
    "sunglasses headphones speaker keyboard mouse monitor laptop tablet phone charger cable camera lens tripod "
    "drone printer router microphone guitar piano drum bicycle helmet tent hammock lantern compass thermos racket "
    "ball skateboard puzzle"
)
ADJECTIVES = _words(
    "small large compact wireless portable foldable vintage modern classic premium organic waterproof adjustable "
    "ergonomic rechargeable digital manual electric handmade lightweight sturdy elegant"
)
COLOURS = _words("red blue green black white silver golden pink grey brown orange purple turquoise beige")
MATERIALS = _words("wood steel wool glass leather cotton bamboo plastic ceramic aluminium linen velvet")
# A product's text contains a few of these, so a word of the prose is in one product of a dozen.
PROSE = _words(
    "kitchen garden bedroom office travel winter summer children guests gift warranty battery storage design "
    "comfort quality cleaning outdoor holiday camping sports music reading cooking everyday weekend family "
    "friends morning evening colour size weight shape surface handle cover pocket zipper button screen sound "
    "light heat water"
)
# Brands: 20 * 20 * 5 invented names, each on 50 of 100,000 products.
_HEADS = _words("Ba Be Bo Da De Fa Fe Ga Go Ka Ke La Lo Ma Mo Na No Ra Ro Sa")
_MIDDLES = _words("lor mar nex vin tor dal rix sen pol gan mil bur tek fon lin zar hem cor dun wel")
_TAILS = _words("a o i us ex")

_FILL = """
INSERT INTO products (id, sku, name, description, price_minor, currency, attributes, active)
SELECT
    -- A time in the first 48 bits, as in ids of products that staff create.
    (lpad(to_hex(1700000000000 + n), 12, '0') || '7' || lpad(to_hex(h & 4095), 3, '0') || '8'
        || left(md5(n::text), 15))::uuid,
    'SKU-' || lpad(n::text, 7, '0'),
    initcap(concat_ws(' ', adjectives[1 + h %% 22], colours[1 + (h / 22) %% 14], nouns[1 + (h / 308) %% nouns_count]))
        || ' ' || heads[1 + n %% 20] || middles[1 + (n / 20) %% 20] || tails[1 + (n / 400) %% 5],
    concat_ws(' ', 'For your', prose[1 + h %% prose_count], 'and', prose[1 + (h / 7) %% prose_count] || ', made of',
        materials[1 + h %% 12], 'with a', prose[1 + (h / 53) %% prose_count], 'that lasts.'),
    99 + h %% 50000,
    'EUR',
    jsonb_build_object(
        'color', colours[1 + (h / 22) %% 14], 'material', materials[1 + h %% 12], 'year', 2015 + h %% 11),
    n %% 50 <> 0
FROM generate_series(%(first)s::int, %(last)s::int) AS n
CROSS JOIN LATERAL (SELECT hashint4(n) & 2147483647 AS h) AS hashed
CROSS JOIN (SELECT %(nouns)s::text[] AS nouns, %(adjectives)s::text[] AS adjectives, %(colours)s::text[] AS colours,
    %(materials)s::text[] AS materials, %(prose)s::text[] AS prose, %(heads)s::text[] AS heads,
    %(middles)s::text[] AS middles, %(tails)s::text[] AS tails,
    %(nouns_count)s::int AS nouns_count, %(prose_count)s::int AS prose_count) AS words
"""


def sku(number: int) -> str:
    """The SKU of product `number`, from 1."""
    return f"SKU-{number:07d}"


def brand(number: int) -> str:
    """The last word of the product's name."""
    return _HEADS[number % 20] + _MIDDLES[number // 20 % 20] + _TAILS[number // 400 % 5]


def fill(connection: psycopg.Connection[Any], products: int, *, first: int = 1) -> None:
    """Insert products numbered `first`, `first` + 1, ... into a migrated catalogue, and gather its statistics.

    The connection must be in autocommit mode. 100,000 products take a few seconds: the search indexes are built
    afterwards.
    """
    indexes = ["products_search", "products_search_name"]
    read = "SELECT pg_get_indexdef(name::regclass) FROM unnest(%s::text[]) AS name"
    definitions = [row[0] for row in connection.execute(read, (indexes,))]
    connection.execute("DROP INDEX products_search, products_search_name")
    connection.execute(
        _FILL,
        {
            "first": first,
            "last": first + products - 1,
            "nouns": NOUNS,
            "adjectives": ADJECTIVES,
            "colours": COLOURS,
            "materials": MATERIALS,
            "prose": PROSE,
            "heads": _HEADS,
            "middles": _MIDDLES,
            "tails": _TAILS,
            "nouns_count": len(NOUNS),
            "prose_count": len(PROSE),
        },
    )
    for definition in definitions:
        connection.execute(definition)
    connection.execute("VACUUM ANALYZE products")
    connection.execute("VACUUM ANALYZE search_words")
