"""RESP2 commands and replies. Performs no I/O."""

from collections.abc import Sequence
from typing import TypeAlias

class ReplyError:
    """An error reply, as a value: `-NOSCRIPT No matching script.`"""

    text: str

class ProtocolViolation(Exception):
    """The peer's bytes are not RESP2, or a reply exceeds the limits."""

Reply: TypeAlias = int | bytes | ReplyError | list[Reply] | None

def encode_command(parts: Sequence[bytes]) -> bytes:
    """`*<n>\\r\\n` and each part as a bulk string."""

class ReplyDecoder:
    """Cuts chunks of any size into complete replies. Holds at most one incomplete reply of 1 MiB."""

    def feed(self, chunk: bytes) -> list[Reply]:
        """The replies that `chunk` completed. Simple strings are returned as bytes."""
