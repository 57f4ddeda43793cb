"""Full-text search over products, best match first, one page at a time.

`interpret` in `search.sql` turns the text into a query: accents, case and punctuation do not count, the last word may
be incomplete, stop words are ignored beside other words, and an unknown word is replaced by the most similar known one.
All words must match. Matches in the name rank first, then in the description, then in SKU and attributes; an exact SKU
ranks above all.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass
from uuid import UUID

from psycopg.rows import class_row

from backoffice.catalogue.store import Product
from backoffice.stores import Stores
from backoffice.web.messages import invalid
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "search.sql")
WORDS_MAX = 16  # further words of a text are ignored
SIMILAR_MAX = 4  # known words that replace an unknown one
RANKED_MAX = 1000  # matches in names, and as many elsewhere; of more matches only the newest are found
_NAMED_RANK = 4.0  # the least rank of a match in the name
_PLACE = struct.Struct(">4sf16s")


@dataclass(frozen=True, slots=True)
class Found(Product):
    """A product and its rank: at least 4 for a match in the name."""

    rank: float


@dataclass(frozen=True, slots=True)
class Place:
    """The end of a page. The next page has products of a lower rank, or older ones of the same rank."""

    rank: float
    product_id: UUID

    @classmethod
    def of(cls, found: Found) -> Place:
        """The place after a product."""
        return cls(found.rank, found.id)

    def encode(self, text: str) -> str:
        """An opaque cursor that is valid for this text only."""
        packed = _PLACE.pack(_digest(text), self.rank, self.product_id.bytes)
        return base64.urlsafe_b64encode(packed).rstrip(b"=").decode("ascii")

    @classmethod
    def decode(cls, text: str, cursor: str | None) -> Place | None:
        """Inverse of `encode`, None without a cursor; Refused for a cursor of another search."""
        if cursor is None:
            return None
        try:
            packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            digest, rank, product_id = _PLACE.unpack(packed)
        except (binascii.Error, ValueError, struct.error) as error:
            raise invalid("/cursor", "is not a cursor of this search") from error
        if digest != _digest(text) or not 0.0 <= rank < 16.0:
            raise invalid("/cursor", "is not a cursor of this search")
        return cls(rank, UUID(bytes=product_id))


class Search:
    """Searches the catalogue database."""

    def __init__(self, stores: Stores) -> None:
        """Uses the stores' pools, owns nothing."""
        self._catalogue = stores.catalogue

    async def page(self, text: str, *, after: Place | None, active: bool | None, limit: int) -> list[Found]:
        """Matching products, best first; none for a text without a word or with an unknown one. `active` filters.

        The order is stable across pages: a product that is created or changed meanwhile takes the place of its rank.
        """
        skus = [text, text.upper()] if any(character.isdigit() for character in text) else []
        async with self._catalogue.connection() as connection:
            understood = {"text": text, "words_max": WORDS_MAX, "similar_max": SIMILAR_MAX}
            row = await (await connection.execute(SQL["interpret"], understood)).fetchone()
            if row is None or row[0] is None:
                return []
            found: list[Found] = []
            for statement in ("search_names", "search_elsewhere"):
                named = statement == "search_names"
                if len(found) == limit or (named and after is not None and after.rank < _NAMED_RANK):
                    continue
                behind = after if after is not None and (after.rank >= _NAMED_RANK) == named else None
                parameters = {
                    "query": row[0],
                    "skus": skus,
                    "active": active,
                    "ranked_max": RANKED_MAX,
                    "rank": None if behind is None else behind.rank,
                    "before": None if behind is None else behind.product_id,
                    "limit": limit - len(found),
                }
                cursor = connection.cursor(row_factory=class_row(Found))
                found += await (await cursor.execute(SQL[statement], parameters)).fetchall()
            return found


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=4).digest()
