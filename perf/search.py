"""Searches on a schedule over 100,000 products, on a complete stack.

    python -m perf.search [--rate 50] [--seconds 20] [--products 100000] [--save] [--json] [--gate]

Search i is due i / rate seconds after the start, whether or not earlier answers came, and its latency counts from
then. The texts are typical inputs: one word, two, three, unfinished or misspelt words, brands and SKUs. Every search
must succeed.
"""

from __future__ import annotations

import argparse
import random
import sys
from typing import Any
from urllib.parse import urlencode

import psycopg

from devstack.demo.rehearsal import own_stack
from perf import shop
from perf.by_clock import Request, percentiles, run
from perf.results import Figure, Target, add_options, conclude, progress

WARM_UP_S = 5.0
P95_MS_MAX = 50.0
LATENESS_P95_MS_MAX = 5.0  # of the sending; above it the schedule was not kept
CLIENTS = 16  # connections; more concurrent searches wait, and their waiting counts
DRAWN = 2000  # distinct texts, used in turn
SEED = 1
# Of a hundred texts.
KINDS = {
    "one word": 20,
    "two words": 25,
    "three words": 15,
    "not finished": 15,
    "misspelt": 10,
    "a brand": 5,
    "a SKU": 5,
    "of descriptions": 5,
}
METHOD = (
    "Open loop of 16 keep-alive connections against the backoffice of a complete embedded stack with 100,000 "
    "products: search i is due i / rate seconds after the start, latency from when it was due to its 200 with the "
    "first 50 products. Of a hundred texts 20 are one word, 25 two, 15 three, 15 unfinished, 10 misspelt, 5 a brand, "
    "5 a SKU, 5 words of descriptions. Client and servers share the machine."
)


def main() -> int:
    options = _options()
    with progress() as say, own_stack(say, name="perf") as (stack, _):
        say(f"{options.products:,} products")
        with psycopg.connect(stack.catalogue_dsn, autocommit=True) as connection:
            shop.fill(connection, options.products)
        searches = [_request(text) for _, text in texts(DRAWN, products=options.products)]
        say("warming up")
        run(stack.backoffice_url, searches, rate=options.rate, seconds=min(WARM_UP_S, options.seconds), clients=CLIENTS)
        say(f"{options.rate:g} searches a second for {options.seconds:g} s")
        course = run(stack.backoffice_url, searches, rate=options.rate, seconds=options.seconds, clients=CLIENTS)
    result: dict[str, Any] = {
        "searches": len(course.latency_ms),
        "latency_ms": percentiles(course.latency_ms),
        "lateness_ms": percentiles(course.lateness_ms),
    }
    targets = [
        Target("p95 from when a search was due", result["latency_ms"]["p95"], "ms", most=P95_MS_MAX),
        Target("p95 of the client's lateness", result["lateness_ms"]["p95"], "ms", most=LATENESS_P95_MS_MAX),
    ]
    shown = ", ".join(f"{name} {value:.1f}" for name, value in result["latency_ms"].items())
    text = [f"{result['searches']} searches, latency ms from when due: {shown}"]
    return conclude(Figure("search", METHOD, targets, result), options, text)


def texts(count: int, *, products: int) -> list[tuple[str, str]]:
    """Kind and text of `count` searches; the same ones in every run."""
    rng = random.Random(SEED)
    kinds = rng.choices(list(KINDS), weights=list(KINDS.values()), k=count)
    return [(kind, _text(kind, rng, products)) for kind in kinds]


def _text(kind: str, rng: random.Random, products: int) -> str:
    noun, colour, adjective = rng.choice(shop.NOUNS), rng.choice(shop.COLOURS), rng.choice(shop.ADJECTIVES)
    match kind:
        case "one word":
            return noun
        case "two words":
            return f"{rng.choice((colour, adjective))} {noun}"
        case "three words":
            return f"{adjective} {colour} {noun}"
        case "not finished":
            return f"{colour} {noun[: max(2, len(noun) - rng.randint(1, 4))]}"
        case "misspelt":
            place = rng.randrange(1, len(adjective) - 1)
            return f"{adjective[:place]}{adjective[place + 1 :]} {noun}"
        case "a brand":
            return shop.brand(rng.randrange(1, products + 1))
        case "a SKU":
            return shop.sku(rng.randrange(1, products + 1))
        case _:
            return f"{rng.choice(shop.PROSE)} {rng.choice(shop.PROSE)} {rng.choice(shop.MATERIALS)}"


def _request(text: str) -> Request:
    return Request("GET", f"/v1/products?{urlencode({'q': text})}", {})


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m perf.search", description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=float, default=50.0, help="searches due a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the schedule")
    parser.add_argument("--products", type=int, default=100_000, help="products that are searched")
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
