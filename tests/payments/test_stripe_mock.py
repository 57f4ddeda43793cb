"""The adapter against stripe-mock, Stripe's own server for tests: it knows the API's parameters and refuses others.

stripe-mock keeps no state, so that answers are fixed documents. It is built once, into the user's cache.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from devstack.children import free_port
from payments.providers.port import Checkout, CheckoutLine, ProviderAway, ProviderRefused, RefundRequest
from payments.providers.stripe_provider import StripeProvider

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # a first build takes a minute
VERSION = "v0.203.0"
BUILD_S_MAX = 500


@pytest.fixture(scope="module")
def mock() -> Path:
    """The executable file."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("go is not installed")
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "flashsale" / f"stripe-mock-{VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    executable = folder / "stripe-mock"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second builder waits, and then finds the file
        if not executable.exists():
            subprocess.run(
                [go, "install", f"github.com/stripe/stripe-mock@{VERSION}"],
                env={**os.environ, "GOBIN": str(folder)}, timeout=BUILD_S_MAX, check=True,
            )  # fmt: skip
    return executable


@pytest.fixture(scope="module")
def url(mock: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    log = tmp_path_factory.mktemp("stripe-mock") / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen([mock, "-http-addr", f"127.0.0.1:{port}"], stdout=sink, stderr=sink)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


@pytest.fixture
async def stripe(url: str) -> AsyncIterator[StripeProvider]:
    provider = StripeProvider(api_key="sk_test_123", webhook_secrets=["whsec_of_this_test"], url=url)
    for _ in range(100):
        try:
            _ = [entry async for entry in provider.entries(datetime.now(UTC))]
            break
        except ProviderAway:
            await asyncio.sleep(0.1)
    yield provider
    await provider.close()


def a_checkout(currency: str = "EUR", quantity: int = 1) -> Checkout:
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    return Checkout(
        uuid4(), [CheckoutLine("SHOE-42", quantity, 1999)], 1999 * quantity, currency, now_ms + 600_000,
        "https://shop.example/shop/orders/1",
    )  # fmt: skip


@pytest.mark.parametrize("currency", ["EUR", "JPY", "ISK"])
async def test_checkout_session_has_a_page(stripe: StripeProvider, currency: str) -> None:
    assert (await stripe.checkout(a_checkout(currency))).startswith("https://")


async def test_parameters_are_checked(stripe: StripeProvider) -> None:
    """Otherwise the tests above would show nothing."""
    with pytest.raises(ProviderRefused):
        await stripe.checkout(a_checkout(quantity="many"))  # type: ignore[arg-type]


async def test_refund_has_an_id(stripe: StripeProvider) -> None:
    refund = RefundRequest(uuid4(), uuid4(), "pi_1", "pi_1", 1999, "EUR")
    assert (await stripe.refund(refund)).startswith("re_")


async def test_ledger_is_readable(stripe: StripeProvider) -> None:
    entries = [entry async for entry in stripe.entries(datetime(2020, 1, 1, tzinfo=UTC))]
    assert any(entry.is_refund for entry in entries)
    assert all(entry.reference and entry.currency.isupper() for entry in entries)


async def test_wrong_key_means_that_the_provider_is_away(url: str) -> None:
    stranger = StripeProvider(api_key="no key of Stripe", webhook_secrets=["whsec_of_this_test"], url=url)
    with pytest.raises(ProviderAway, match="FLASHSALE_PAYMENT_API_KEY"):
        await stranger.checkout(a_checkout())
    await stranger.close()
