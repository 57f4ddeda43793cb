"""A sale for the hot path, with all constant bytes of keys and answers prebuilt."""

from collections.abc import Sequence

class LaneNames:
    """Names of one lane's keys for one sale. The 16 bytes of an id follow each prefix."""

    def __init__(
        self,
        *,
        lane: int,
        state_key: str,
        stream_key: str,
        beat_key: str,
        user_key_prefix: bytes,
        order_key_prefix: bytes,
    ) -> None: ...

class Tally:
    """Counts of answers for one sale, shared by the views of its versions."""

    def take(self) -> dict[int, int]:
        """Verdict -> count since the last call. Resets the counts."""

    @property
    def total(self) -> int:
        """Sum of the counts since the last call of `take`."""

class SaleView:
    """One version of a published sale. Immutable, except for the marks of SKUs last seen sold out."""

    def __init__(
        self,
        *,
        sale_id: bytes,
        epoch: int,
        version: int,
        hold_ms: int,
        currency: str,
        lanes: Sequence[LaneNames],
        items: Sequence[tuple[str, int]],
        tally: Tally | None = None,
    ) -> None:
        """`items`: (SKU, unit price in minor units) in index order; `tally`: from the view that this one replaces."""

    @property
    def sale_id(self) -> bytes: ...
    @property
    def epoch(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def tally(self) -> Tally: ...
    def is_sold_out(self, sku_index: int) -> bool:
        """Whether the lane last reported the SKU as sold out. A hint for batching, never a reason to refuse."""
