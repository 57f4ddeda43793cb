"""Payment providers: the port and its adapters. `open_provider` chooses an adapter by name."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from payments.providers.port import PaymentProvider
from payments.providers.simulated import SimulatedProvider
from runtime.process.settings import PREFIX, Settings, SettingsError

SECRET_LENGTH_MIN: Final = 16


def open_provider(settings: Settings) -> PaymentProvider | None:
    """The provider of FLASHSALE_PAYMENT_PROVIDER; None for `none`. Connects when it is first used.

    Raises SettingsError that lists every setting which the provider needs and lacks.
    """
    name = settings.payment_provider
    if name == "none":
        return None
    api_key = settings.payment_api_key.get_secret_value() if settings.payment_api_key is not None else ""
    secrets = [secret.get_secret_value() for secret in settings.payment_webhook_secrets]
    problems = []
    if not api_key:
        problems.append(f"{PREFIX}PAYMENT_API_KEY: needed for the payment provider {name}")
    if not secrets:
        problems.append(f"{PREFIX}PAYMENT_WEBHOOK_SECRETS: needed for the payment provider {name}")
    if any(len(secret) < SECRET_LENGTH_MIN for secret in secrets):
        problems.append(f"{PREFIX}PAYMENT_WEBHOOK_SECRETS: each secret has {SECRET_LENGTH_MIN} characters or more")
    if name == "simulated" and not settings.payment_url:
        problems.append(f"{PREFIX}PAYMENT_URL: needed for the payment provider {name}")
    if settings.payment_url and not _is_address(settings.payment_url):
        problems.append(f"{PREFIX}PAYMENT_URL: not an address such as http://127.0.0.1:8090")
    if problems:
        raise SettingsError("; ".join(problems))
    if name == "stripe":
        return _stripe(api_key, secrets, settings.payment_url)
    return SimulatedProvider(url=settings.payment_url, api_key=api_key, webhook_secrets=secrets)


def _stripe(api_key: str, secrets: list[str], url: str) -> PaymentProvider:
    # Here: the library takes a third of a second to load, and only shops that use it shall pay that at each start.
    from payments.providers.stripe_provider import StripeProvider

    return StripeProvider(api_key=api_key, webhook_secrets=secrets, url=url)


def _is_address(url: str) -> bool:
    """Scheme, host and optional port and path: a login, a query or a fragment would be a mistake."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is no number
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and url.isascii()
        and url.isprintable()
        and " " not in url
        and not (parts.username or parts.password or parts.query or parts.fragment)
    )
