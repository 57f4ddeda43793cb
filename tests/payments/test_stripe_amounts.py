"""Amounts as Stripe counts them, by the examples of its documentation, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.currencies import MINOR_UNIT_PLACES
from payments.providers.stripe_amounts import AmountUnfit, from_stripe, to_stripe

amounts = st.integers(1, 2**53)
currencies = st.sampled_from(sorted(MINOR_UNIT_PLACES))


@pytest.mark.parametrize(
    ("amount_minor", "currency", "at_stripe"),
    [
        (1000, "USD", 1000),  # 10 USD
        (500, "JPY", 500),  # 500 JPY
        (500, "KRW", 500),
        (5, "ISK", 500),  # 5 ISK: two places, always 00
        (5, "UGX", 500),
        (1045, "HUF", 1045),  # 10.45 HUF: no places only in payouts
        (80045, "TWD", 80045),
        (5120, "KWD", 5120),  # 5.120 KWD
        (500, "MGA", 5),  # 5.00 MGA: no places at Stripe
    ],
)
def test_amounts_of_the_documentation(amount_minor: int, currency: str, at_stripe: int) -> None:
    assert to_stripe(amount_minor, currency) == at_stripe
    assert from_stripe(at_stripe, currency) == amount_minor


@pytest.mark.parametrize(("amount_minor", "currency"), [(5124, "KWD"), (5001, "BHD"), (501, "MGA")])
def test_amounts_that_stripe_does_not_take(amount_minor: int, currency: str) -> None:
    with pytest.raises(AmountUnfit, match=currency):
        to_stripe(amount_minor, currency)


@pytest.mark.parametrize(("amount", "currency"), [(501, "ISK"), (1, "UGX")])
def test_amounts_that_we_cannot_express(amount: int, currency: str) -> None:
    with pytest.raises(AmountUnfit, match=currency):
        from_stripe(amount, currency)


@given(amounts, currencies)
def test_there_and_back(amount_minor: int, currency: str) -> None:
    try:
        at_stripe = to_stripe(amount_minor, currency)
    except AmountUnfit:
        assert currency == "MGA" or MINOR_UNIT_PLACES[currency] == 3
        return
    assert from_stripe(at_stripe, currency) == amount_minor
