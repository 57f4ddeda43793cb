"""Buyers' access tokens: compact JWS, HS256 only, keys by `kid`. Faults are returned as ints, never raised."""

from collections.abc import Mapping

TOKEN_MISSING: int
TOKEN_INVALID: int
TOKEN_EXPIRED: int
TOKEN_ENDED: int

class Claims:
    """The claims of a valid token."""

    @property
    def user_id(self) -> bytes:
        """16 bytes of `sub`."""

    @property
    def expires_at_s(self) -> int:
        """`exp`, Unix seconds."""

    @property
    def issued_at_s(self) -> int:
        """`iat`, Unix seconds."""

    @property
    def generation_of_sessions(self) -> int:
        """`gen`: the newest end of the user's sessions when the token was made; -1 without it."""

class KeyRing:
    """HS256 keys by `kid`. The algorithm belongs to the key: a header with another one is refused."""

    def __init__(
        self,
        keys: Mapping[str, bytes],
        *,
        issuer: str,
        audience: str = "edge",
        role: str = "buyer",
        leeway_s: int = 60,
        ends: dict[bytes, int] | None = None,
    ) -> None:
        """`ends` is `runtime.tokens.session_ends.SessionEnds.table`: tokens of before are TOKEN_ENDED.

        The table is not copied: its owner changes it on the loop's thread. An empty table costs nothing.
        """

    def replace(self, keys: Mapping[str, bytes]) -> None:
        """Verify with these keys from now on."""

    def verify(self, token: bytes, now_s: int) -> Claims | int:
        """Claims, or TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_ENDED. `leeway_s` applies to `iat` and `nbf`, not to `exp`."""

    def authorize(self, authorization: str | None, now_s: int) -> Claims | int:
        """Like `verify`, from an `Authorization` header; TOKEN_MISSING without a Bearer token."""
