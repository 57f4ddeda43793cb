"""The `Idempotency-Key` header (draft-ietf-httpapi-idempotency-key-header): bare, or as a quoted string."""

from __future__ import annotations

from backoffice.web.messages import Call, Refused
from domain.orders import KEY_LENGTH_MAX
from domain.problems import Problem


class KeyReused(Refused):
    """The idempotency key was used before, for other content.

    Stores raise it; the answer is `idempotency_key_reused`.
    """

    def __init__(self) -> None:
        """The title of the problem says everything."""
        super().__init__(Problem.IDEMPOTENCY_KEY_REUSED)


def idempotency_key(call: Call) -> str | None:
    """The key, or None without one; Refused(`malformed_request`) for anything but 1 to 64 visible ASCII characters."""
    header = call.headers.get("idempotency-key", "").strip(" \t")
    if not header:
        return None
    key = header
    if header.startswith('"'):
        inner = header[1:-1]
        # RFC 8941, section 3.3.3: a backslash escapes a quote or a backslash, and nothing else.
        if len(header) < 2 or not header.endswith('"') or "\\" in inner.replace("\\\\", "").replace('\\"', ""):
            raise Refused(Problem.MALFORMED_REQUEST, "The Idempotency-Key is not a valid quoted string")
        key = inner.replace('\\"', '"').replace("\\\\", "\\")
    if not 1 <= len(key) <= KEY_LENGTH_MAX or not all("!" <= character <= "~" for character in key):
        raise Refused(
            Problem.MALFORMED_REQUEST, f"The Idempotency-Key must have 1 to {KEY_LENGTH_MAX} visible ASCII characters"
        )
    return key


def required_idempotency_key(call: Call) -> str:
    """The key; Refused(`idempotency_key_missing`) without one."""
    key = idempotency_key(call)
    if key is None:
        raise Refused(Problem.IDEMPOTENCY_KEY_MISSING)
    return key
