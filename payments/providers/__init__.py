"""Payment providers: the port and its adapters. `open_provider` chooses an adapter by name."""

from __future__ import annotations

from payments.providers.port import PaymentProvider
from runtime.process.settings import Settings


def open_provider(settings: Settings) -> PaymentProvider | None:
    """The provider of FLASHSALE_PAYMENT_PROVIDER; None for `none`. Connects when it is first used."""
    assert settings.payment_provider == "none"
    return None
