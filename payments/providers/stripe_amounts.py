"""Amounts as Stripe counts them, and back. Performs no I/O.

Stripe counts in the smallest unit of most currencies, as ISO 4217 does. It differs for those below, and takes no last
digit but 0 in currencies with three decimal places (https://docs.stripe.com/currencies, section "Special cases"). HUF
and TWD have two places for payments; they are special for payouts only, which this project does not make.
"""

from __future__ import annotations

from typing import Final

from domain.currencies import MINOR_UNIT_PLACES

STRIPE_PLACES: Final = {"ISK": 2, "UGX": 2, "MGA": 0}
_STEP_OF_THREE_PLACES: Final = 10


class AmountUnfit(ValueError):
    """The amount cannot be expressed in the other counting."""


def to_stripe(amount_minor: int, currency: str) -> int:
    """Our minor units as Stripe counts. Raises AmountUnfit."""
    ours = MINOR_UNIT_PLACES.get(currency, 2)
    amount = _shifted(amount_minor, currency, STRIPE_PLACES.get(currency, ours) - ours)
    if ours == 3 and amount % _STEP_OF_THREE_PLACES:
        raise AmountUnfit(f"{currency} amounts end with 0 at Stripe, this one is {amount_minor}")
    return amount


def from_stripe(amount: int, currency: str) -> int:
    """Inverse of `to_stripe`. Raises AmountUnfit."""
    ours = MINOR_UNIT_PLACES.get(currency, 2)
    return _shifted(amount, currency, ours - STRIPE_PLACES.get(currency, ours))


def _shifted(amount: int, currency: str, places: int) -> int:
    if places >= 0:
        return amount * int(10**places)
    whole, rest = divmod(amount, int(10**-places))
    if rest:
        raise AmountUnfit(f"{amount} {currency} is no whole number of units")
    return whole
