class Loop:
    started_ns: int
    next_order: int
    accepted: int
    refused: int
    replayed: int
    retries: int
    transport_errors: int
    given_up: int

    def __init__(
        self,
        *,
        host: str,
        port: int,
        path: str,
        tokens: list[bytes],
        bodies: list[bytes],
        connections: int,
        prefix: str,
        record_fd: int,
    ) -> None: ...
    def run(self, seconds: float) -> None: ...
    def finish(self, seconds: float) -> int: ...
    def codes_seen(self) -> dict[tuple[int, str], int]: ...
    def latencies(self) -> tuple[list[int], list[int]]: ...
    def timeline(self) -> tuple[list[int], list[int]]: ...

def bucket_start_us(bucket: int) -> int: ...
def bucket_index(microseconds: int) -> int: ...
