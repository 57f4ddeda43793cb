"""The `flashsale` command: operations for any deployment, and the commands that installed extras add."""

from __future__ import annotations

import logging
import sys

import typer

from ops.commands import (
    analytics,
    backup,
    checks,
    dead_letters,
    events,
    failover,
    imports,
    keys,
    payments,
    rebuild,
    samples,
    shards,
)
from ops.extensions import Commands
from runtime.process.errors import OperatorError

app = typer.Typer(
    name="flashsale", cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Runs and operates flash sales. A command works on the deployment that FLASHSALE_* settings describe, "
    "otherwise on the stack of this machine that is up.",
)  # fmt: skip
app.command()(checks.migrate)
app.command()(checks.reconcile)
app.command()(rebuild.rebuild)
app.command()(failover.failover)
app.add_typer(analytics.app, name="analytics")
app.add_typer(backup.app, name="backup")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(events.app, name="events")
app.add_typer(payments.app, name="payments")
app.add_typer(shards.app, name="shards")
app.command("rotate-keys")(keys.rotate_keys)
app.command("vapid-key")(keys.vapid_key)
app.add_typer(imports.app, name="import")
app.command("sample-sale")(samples.sample_sale)
app.command("mint-tokens")(samples.mint_tokens)


def main() -> None:
    """Entry point. Exit status: 0 done, 1 the command or a check failed, 2 wrong usage, 3 no stack is up (`status`)."""
    # Failures are raised; a connection pool would also log each of its attempts.
    logging.disable()
    try:
        app()
    except OperatorError as error:
        print(f"flashsale: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
