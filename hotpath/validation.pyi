"""The order body and the Idempotency-Key: strict, hand-written parsers. Bytes in, values or faults out."""

class Malformed:
    """The body is not JSON (RFC 8259, UTF-8, depth at most 16), or the key is malformed."""

    detail: str

class Invalid:
    """The body is JSON but no order. `errors`: (RFC 6901 pointer, description), at most 32."""

    errors: list[tuple[str, str]]

def parse_order(body: bytes) -> list[tuple[str, int]] | Malformed | Invalid:
    """Lines (SKU, quantity) in request order, or the faults of the body."""

def parse_idempotency_key(header: str | None) -> str | Malformed | None:
    """The key without the quotes of the draft; None without a key; Malformed for a malformed one."""
