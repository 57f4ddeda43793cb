"""The order body and the Idempotency-Key: strict, hand-written parsers. Bytes in, values or faults out."""

class Malformed:
    """The body is not JSON (RFC 8259, UTF-8, depth at most 16), or a key cannot be one."""

    detail: str

class Invalid:
    """The body is JSON but no order. `errors`: (RFC 6901 pointer, what is wrong there), at most 32."""

    errors: list[tuple[str, str]]

def parse_order(body: bytes) -> list[tuple[str, int]] | Malformed | Invalid:
    """Lines (SKU, quantity) in request order, or what is wrong with the body."""

def parse_idempotency_key(header: str | None) -> str | Malformed | None:
    """The key without the draft's quotes; None when there is none; Malformed when it cannot be a key."""
