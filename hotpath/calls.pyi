"""One call of `reserve` or `lookup` as RESP. Performs no I/O."""

class CallEncoder:
    """Writes the batcher's script calls. Its methods are for compiled callers."""

    def __init__(
        self,
        *,
        reserve_sha: str,
        lookup_sha: str,
        emission_interval_us: int,
        burst: int,
        stream_length_max: int,
    ) -> None:
        """SHA-1s have 40 hex digits; the limits are arguments of the scripts (`docs/redis-layout.md`)."""
