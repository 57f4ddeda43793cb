"""The secrets of mailed links, derived from the worker's key and the notice, so that no server's file holds them.

A repeated delivery derives the same secret, so a mail that goes out twice has the same token.
"""

from __future__ import annotations

import hmac
from typing import Final
from uuid import UUID

from pydantic import SecretStr

from domain.mailed_tokens import SECRET_BYTES
from runtime.process.settings import PREFIX, SettingsError

_PURPOSE: Final = b"flashsale mailed token\0"


class MailedSecrets:
    """Derives secrets with HMAC-SHA-256 (RFC 2104)."""

    def __init__(self, key: SecretStr | None) -> None:
        """SettingsError without a key."""
        if key is None:
            raise SettingsError(f"{PREFIX}NOTICE_KEY: not set; mailed links are derived from it (32 random characters)")
        self._key = key.get_secret_value().encode()

    def of(self, notice_id: UUID) -> bytes:
        """The secret of the notice's link, the same at each call."""
        secret = hmac.digest(self._key, _PURPOSE + notice_id.bytes, "sha256")
        assert len(secret) == SECRET_BYTES
        return secret
