"""Order ids, short ids, user hash, timestamps, packed keys: compiled equivalents of functions in `domain`."""

def user_hash(user_id: bytes) -> int:
    """64-bit FNV-1a of the 16 bytes, folded."""

def short_id(value: bytes) -> str:
    """22 characters of unpadded base64url for 16 bytes."""

def uuid_text(value: bytes) -> str:
    """Canonical text of 16 bytes."""

def parse_uuid(text: str) -> bytes | None:
    """16 bytes of a canonical id (36 characters, either case); None for any other text."""

def pack_key(key: bytes) -> bytes:
    """An idempotency key of 1 to 64 bytes as Redis keeps it (`domain.orders.pack_key`)."""

def rfc3339_ms(unix_ms: int) -> str:
    """`2026-01-01T00:00:00.123Z`."""

class OrderIds:
    """Makes UUIDv8 order ids. Reads randomness from the system for 512 ids at a time."""

    def make(self, *, unix_ms: int, lane: int, bucket: int) -> bytes:
        """The 16 bytes of a new id."""
