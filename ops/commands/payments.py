"""`payments`: compare the payment provider's ledger with the shards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import psycopg
import typer
from psycopg_pool import PoolTimeout
from rich.console import Console

from ops.commands.options import AsJson, StateDir, print_json
from ops.commands.times import parse_since
from ops.stack_file import StackFolder
from ops.target import Target, resolve
from payments.both_ledgers import BothLedgers, TooMuch
from payments.comparing import Comparison, Difference
from payments.providers import open_provider
from payments.providers.port import ProviderAway, ProviderRefused
from runtime.postgres.pool import postgres_pool
from runtime.process.errors import OperatorError
from runtime.process.settings import Settings, load_settings, overrule

ATTEMPTS_MAX: Final = 4
PAUSE_S: Final = 0.5  # after the first attempt, longer after each further one
SHOWN_MAX: Final = 50  # differences; JSON has them all

app = typer.Typer(no_args_is_help=True, help="Payments: compare the provider's ledger with ours.")


@app.callback()
def _group() -> None:
    """Payments: compare the provider's ledger with ours."""


@app.command()
def reconcile(
    since: Annotated[
        str, typer.Option(help="Compare from this time on: 90m, 24h, 7d, or 2026-11-28T00:00:00Z.")
    ] = "7d",
    grace_s: Annotated[
        float, typer.Option(min=0, max=86_400, help="Younger payments may still be under way: their age in seconds.")
    ] = 300.0,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """Compare the provider's ledger with the payments and refunds in the shards; name every difference.

    Changes nothing. Exit status 1 if there is a difference, or if the ledgers cannot be compared.
    """
    began = parse_since(since, now=datetime.now(UTC))
    target = resolve(state_dir, needs=["shard_dsns"])
    settings = _with_provider(target, state_dir)
    console = Console(stderr=True)
    with console.status("comparing") as status:  # shows nothing unless stderr is a terminal

        def progress(rows: int, entries: int) -> None:
            status.update(f"{rows} rows of the shards, {entries} entries of {settings.payment_provider}")

        try:
            comparison = asyncio.run(_patiently(settings, began, timedelta(seconds=grace_s), progress))
        except TooMuch as error:
            raise OperatorError(f"{error} since {_time(began)}: choose a later --since") from error
        except (ProviderAway, ProviderRefused) as error:
            raise OperatorError(f"{settings.payment_provider} does not show its ledger: {error}") from error
        except (psycopg.Error, PoolTimeout, OSError, TimeoutError) as error:
            raise OperatorError(f"a shard does not answer: {type(error).__name__}") from error
    if as_json:
        print_json(_document(comparison, settings.payment_provider))
    else:
        _print(comparison, settings.payment_provider)
    raise typer.Exit(1 if comparison.differences else 0)


def _with_provider(target: Target, state_dir: Any) -> Settings:
    """The deployment's settings with its provider: those of the environment, or the stack's simulator."""
    settings = target.settings
    if target.stack is not None:
        ours = StackFolder.at(state_dir).payment_env(target.stack)
        settings = load_settings(overrule(target.environ, ours))
    if settings.payment_provider == "none":
        raise OperatorError("there is no payment provider: set FLASHSALE_PAYMENT_PROVIDER and its settings")
    return settings


async def _patiently(
    settings: Settings, since: datetime, grace: timedelta, progress: Callable[[int, int], None]
) -> Comparison:
    """The comparison, from the beginning again when the provider is away for a moment."""
    for attempt in range(1, ATTEMPTS_MAX):
        try:
            return await _compare(settings, since, grace, progress)
        except ProviderAway:
            await asyncio.sleep(attempt * PAUSE_S)
    return await _compare(settings, since, grace, progress)


async def _compare(
    settings: Settings, since: datetime, grace: timedelta, progress: Callable[[int, int], None]
) -> Comparison:
    async with AsyncExitStack() as stack:
        provider = open_provider(settings)
        assert provider is not None, "checked before"
        stack.push_async_callback(provider.close)
        pools = [await stack.enter_async_context(postgres_pool(dsn, size_max=1)) for dsn in settings.shard_dsns]
        return await BothLedgers(pools, provider).compare(since, grace=grace, progress=progress)


def _document(comparison: Comparison, provider: str) -> dict[str, Any]:
    return {
        "provider": provider,
        "since": _time(comparison.since),
        "at": _time(comparison.at),
        "payments": comparison.payments,
        "payments_minor": dict(comparison.payments_minor),
        "refunds": comparison.refunds,
        "refunds_minor": dict(comparison.refunds_minor),
        "under_way": comparison.under_way,
        "differences": [_difference(difference) for difference in comparison.differences],
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "kind": difference.kind.value,
        "id": difference.id,
        "order_id": None if difference.order_id is None else str(difference.order_id),
        "ours": difference.ours,
        "theirs": difference.theirs,
        "at": _time(difference.at),
    }


def _print(comparison: Comparison, provider: str) -> None:
    print(f"{provider}, {_time(comparison.since)} to {_time(comparison.at)}")
    print(f"payments  {comparison.payments:>9}  {_sums(comparison.payments_minor)}")
    print(f"refunds   {comparison.refunds:>9}  {_sums(comparison.refunds_minor)}")
    if comparison.under_way:
        print(f"under way {comparison.under_way:>9}  not judged yet")
    for difference in comparison.differences[:SHOWN_MAX]:
        print(f"{_time(difference.at)}  {difference.kind}  {difference.id}")
        print(f"    ours    {difference.ours or 'nothing'}")
        print(f"    theirs  {difference.theirs or 'nothing'}")
    count = len(comparison.differences)
    if count > SHOWN_MAX:
        print(f"and {count - SHOWN_MAX} more: use --json")
    print("No difference." if not count else f"{count} difference{'s' if count > 1 else ''}.")


def _sums(sums: dict[str, int]) -> str:
    return ", ".join(f"{amount} {currency} (minor units)" for currency, amount in sorted(sums.items())) or "0"


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
