"""Buyers' access tokens: compact JWS, HS256 only, keys by `kid`. Every fault is an int, never an exception."""

from collections.abc import Mapping

TOKEN_MISSING: int
TOKEN_INVALID: int
TOKEN_EXPIRED: int
TOKEN_ENDED: int

class Claims:
    """What a valid token says of its holder."""

    @property
    def user_id(self) -> bytes:
        """16 bytes of `sub`."""

    @property
    def expires_at_s(self) -> int:
        """`exp`, Unix seconds."""

    @property
    def issued_at_s(self) -> int:
        """`iat`, Unix seconds."""

class KeyRing:
    """HS256 keys by `kid`. The algorithm is pinned to the key: a header that names another is refused."""

    def __init__(
        self,
        keys: Mapping[str, bytes],
        *,
        issuer: str,
        audience: str = "edge",
        role: str = "buyer",
        leeway_s: int = 60,
        not_before: dict[bytes, int] | None = None,
    ) -> None:
        """`not_before`: 16 bytes of a user id -> Unix seconds; tokens issued before are TOKEN_ENDED. `b""` stands for
        everybody. The table is not copied: who owns it changes it on the loop's thread. It costs nothing while empty.
        """

    def replace(self, keys: Mapping[str, bytes]) -> None:
        """Verify by these keys from now on."""

    def verify(self, token: bytes, now_s: int) -> Claims | int:
        """Claims, or TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_ENDED. `leeway_s` is for `iat` and `nbf` ahead of us, not for `exp`."""

    def authorize(self, authorization: str | None, now_s: int) -> Claims | int:
        """The same from an `Authorization` header; TOKEN_MISSING when there is none or it is not `Bearer`."""
